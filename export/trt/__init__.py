"""Build, check, run and time engines of TensorRT, 10.3 to 11.x, and TensorRT-RTX. No torch here.

| file                      | does                                                                                  |
|---------------------------|---------------------------------------------------------------------------------------|
| `guard`                   | prove a usable GPU before any TensorRT object exists, and import TensorRT              |
| `versions`                | everything that differs between versions of TensorRT, and TensorRT-RTX                 |
| `rtx`                     | TensorRT-RTX: builds without a GPU for GPUs that are named; its cache of kernels       |
| `proof`                   | prove an engine, where it first runs, that was built where it could not                |
| `log`                     | collect TensorRT's own messages, and turn None and False into exceptions with them     |
| `options`                 | how an engine is to be built, as plain data                                            |
| `precision`               | give a graph its precision, and refuse one whose types do not fit                      |
| `mixed`                   | find the nodes that must stay in fp32, by parity on a CPU                              |
| `build`                   | ONNX to engine                                                                         |
| `timing_cache`            | keep what TensorRT timed, per TensorRT, GPU and driver                                 |
| `progress`                | show how far a build is, and end it on Ctrl-C                                          |
| `engine_file`             | the manifest beside an engine; refuse what does not fit this machine before loading it |
| `device`                  | device memory, streams, events and graphs behind one protocol                          |
| `device_torch`, `device_cuda_bindings`, `device_pycuda` | who talks to CUDA                                       |
| `engine_io`               | an engine's inputs and outputs: names, types, shapes                                   |
| `onnx_metadata`           | read an ONNX file's metadata without the package onnx                                  |
| `runner`                  | run and time an engine behind `export.runtime.Session`                                 |
| `layers`                  | per-layer times and descriptions in trtexec's schema; is the attention fused?          |
| `run`                     | `python -m export.trt.run`: time an engine where there is no torch                     |
| `from_onnx`               | `python -m export.trt.from_onnx`: build one from an ONNX file there, or rebuild it    |
| `runtime`                 | TensorRT behind `export.runtime.Runtime`: files, modules, operators                    |
| `grouped`                 | several operators in one engine, for latency tables                                    |
| `attribution`             | which layer belongs to which of them; the device kit uses it, too                      |
| `plugin`                  | the attention kernel as an ahead-of-time plugin                                        |
| `attention_memory`        | keep what was chosen on this machine, for tables and searches                          |
| `attention_case`          | one shape of attention: its graph alone, examples, and a float64 reference             |
| `attention_benchmark`     | build, prove and time implementations of one shape                                     |
| `choose`                  | fused, grouped, decomposed or chunked attention, or the plugin: measured, or as built  |
"""
