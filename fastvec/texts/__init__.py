"""Turns texts into packed token ids.

- `load` loads a checkpoint's tokenizer: with `from_files` if its files fully define it, else with `from_transformers`.
- `special_tokens` decides on BOS and EOS, `prompt` on the chat template and the EOS after a text.
- `tokenizer` turns texts into ids, truncates them, and finds the span of tokens to pool.
- `batching` groups the texts of a chunk into batches by a token budget, `packing` concatenates each batch's sequences.

Nothing here runs a model.
"""
