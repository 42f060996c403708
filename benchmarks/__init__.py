"""Benchmarks, one module for each command: `python -m benchmarks.NAME`.

`embed`, `growth`, `memory`, `pipeline` and `quantized` measure embedding, `adapt` training steps, `quality` the
vectors, `kernels` single ops; `aot` compiles the kernels without a GPU, and `gpu` runs everything that needs one. The
packages `ops`, `engines` and `reporting` serve them.
"""
