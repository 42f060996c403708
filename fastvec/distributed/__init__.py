"""Several processes that train one model, as torchrun starts them: a rank each, and usually a device each.

- `ranks` starts them, lets rank 0 decide for all, and lets only one report an error.
- `sharding` splits a model over them (FSDP2), and reads and writes its weights and its optimizer's state as a whole.
"""
