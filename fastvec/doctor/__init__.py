"""`fastvec doctor`: whether this machine can run fastvec, and if not, what to do.

- `diagnosis` runs all checks; `report` is their result.
- `versions` checks Python and the installed packages, `environment` memory, files and the hub, `storage` folders.
- `isolated` runs checks in `child`, a process that may crash or hang: everything that loads torch.
- There, `devices` looks at torch, the processor and GPUs, `compiler` at what Triton needs, `batch` embeds texts and a
  small corpus, and `kernels` compares every kernel with its reference.

Nothing here uses the network.
"""
