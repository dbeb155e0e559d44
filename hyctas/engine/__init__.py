"""TensorRT engines of networks. Nothing here imports TensorRT before it is used. No torch here.

| file        | does                                                                              |
|-------------|-----------------------------------------------------------------------------------|
| `settings`  | how engines are built and loaded, as plain data                                   |
| `context`   | what building needs: TensorRT and a GPU, or TensorRT-RTX for GPUs elsewhere        |
| `attention` | export with attention as nodes, and choose an implementation for each             |
| `write`     | build a network's engine, prove it, and write it with its manifest                |
| `table`     | give attention in operators and networks that are only measured its implementation |
"""
