"""Check and measure everything that needs a GPU, in one command: `python -m benchmarks.gpu_suite --out DIR`.

| module | what it does |
|---|---|
| `__main__` | the command: parts one after the other, each in a process of its own, under a budget of time |
| `part` | runs one part in that process |
| `records` | one JSON file per part, written after every measurement and continued by the next run |
| `place`, `timing` | the device; how calls are timed on it |
| `launches`, `pool`, `warm` | what is launched; processes that compile it beforehand, without the GPU |
| `numerics`, `cases`, `torch_checks` | part 1: results against float64, and the operator inside PyTorch |
| `attention`, `tuning`, `rivals`, `floor` | part 2: speed beside others' and beside arithmetic; the table for the dispatch |
| `fidelity` | part 3: predicted against measured latency on this GPU |
| `end_to_end` | part 4: whole networks |
| `tests` | part 5: the tests marked `gpu` |
| `summary`, `goals` | `summary.md`, from the files alone |
"""
