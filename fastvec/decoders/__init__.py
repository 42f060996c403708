"""Run a decoder over packed sequences, bidirectional or causal.

`load.load_decoder` returns one of two decoders:

- `from_files` reads the plain Llama layout directly from safetensors, without importing transformers.
- `from_transformers` loads any other supported model and merges its adapters; `packed_transformers` runs it with
  fastvec's attention.

The encoder replaces either by the fused path if possible: `fused` is the forward pass, `llama_layers` extracts the
weights of a Llama-style layer, and `detection` finds such layers in a transformers model and compares the fused path
with transformers. Training runs `packed_transformers`.
`cpu_choices` measures how a CPU computes matrix products and attention fastest. `quantized` replaces the linear layers
with int8 or fp8, and `agreement` measures what that changes. `self_check` tests
at load time that attention sees the tokens it should, and `kernel_check` on a GPU that the kernels are right.

Nothing here depends on the corpus or the output.
"""
