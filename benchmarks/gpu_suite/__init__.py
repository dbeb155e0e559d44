"""Check and measure everything that needs a GPU, in one command: `python -m benchmarks.gpu_suite --out DIR`.

| module | what it does |
|---|---|
| `__main__` | the command: runs the parts one after the other, each in a process of its own, against the clock |
| `records` | one JSON file per part, written after every measurement and continued by the next run |
| `launches` | the device, what is launched on it, how that is compiled and timed, and the least time that arithmetic allows |
| `numerics` | part 1: by pytest, our kernels against float64, the operators inside PyTorch, and all tests marked `gpu` |
| `attention` | part 2: the fastest tiles, our kernels beside PyTorch's, the dispatch's table |
| `networks` | parts 3 and 4: predicted against measured latency; whole networks with every way to compute their attention |
| `summary` | `summary.md`, from the files alone |
"""
