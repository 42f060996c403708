"""Checks, times and compiles single ops, for `benchmarks.kernels` and `benchmarks.aot`.

`benchmarks.embed` takes the measured peak rate from `roofline`.

- `shapes` lists the shapes of each op and the length patterns; `workload` defines an op on a shape, its implementations
  and the check against a float32 reference. `attention` and `wide` build the workloads: attention, and the ops bound by
  the copy rate.
- `measurement` turns workloads into result rows: it checks each implementation, then times it. `timing` times calls
  with CUDA events; `roofline` measures the device's peak rates and counts the bytes and FLOPs that an op needs.
- `attention_tuning` times every candidate tile in attention's configuration table; `attention_tiles` computes the
  useful share of a tile's work.
- `compile_cases` lists calls that launch every shipped kernel configuration; `machine_code` reads registers, spills and
  instructions of a compiled kernel and checks the rules of the ahead-of-time gate.
"""
