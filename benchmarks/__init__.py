"""Benchmarks, one module for each command: `python -m benchmarks.NAME`.

`embed`, `growth`, `memory`, `pipeline` and `quantized` measure embedding, `forward` and `profiling` the forward pass
alone, `adapt` training steps, `quality` the vectors, `kernels` single ops, `ceilings` what the device can do. `aot`
compiles the kernels without a GPU, `exactness` checks attention on one, `recovery` kills and resumes a job, `read_back`
reads an output again. `faults` and `soak` disturb thousands of jobs, and a long one, on a CPU; `fuzz` and
`hostile_files` read damaged and unusual input files. `gpu` runs everything that needs a GPU, in the stages of `visit`.
`scale` runs jobs of many workers and many shards. The packages `ops`, `engines`, `scaling`, `faulting`, `fuzzing` and
`reporting` serve them.
"""
