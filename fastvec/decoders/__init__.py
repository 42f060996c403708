"""Running a decoder over packed sequences, bidirectional or causal.

`load.load_decoder` gives one of two:

- `from_files` reads Llama's plain layout straight from safetensors, without importing transformers;
- `from_transformers` loads any other supported model, merges its adapters, and `packed_transformers` runs it with our
  attention.

Both run by the fused path where possible: `fused` is the forward pass, `llama_layers` takes a Llama-style layer apart,
`detection` finds such layers in a model of transformers and compares the result with it. `quantized` replaces the
linear layers by int8 or fp8, and `agreement` measures what that changes. `self_check` tests at load time that attention
sees what it should.

Nothing here knows about texts, Arrow or files of a corpus.
"""
