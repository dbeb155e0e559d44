"""Make int8 models out of fp32 ones, and say what that costs. No torch here.

| file                 |                                                                                                         |
|----------------------|---------------------------------------------------------------------------------------------------------|
| `quantise`           | write a graph with QuantizeLinear and DequantizeLinear, by ONNX Runtime's quantiser                     |
| `uint8_form`         | what CPU runtimes compute of such a graph: the same with activations in uint8, which their kernels take |
| `loading`            | read files in that form                                                                                 |
| `quantised_operator` | operators of TensorRT's latency tables, with integer inputs and outputs                                 |
| `float_layers`       | sensitivity analysis: which layers stay in float until the loss is within a bound                       |
| `loss`               | the loss, as numbers that are kept beside the file                                                      |
"""
