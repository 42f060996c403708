"""Texts to packed token ids.

- `load` gives a checkpoint's tokenizer: `from_files` where tokenizer.json says all of it, else `from_transformers`.
- `special_tokens` decides on BOS and EOS, `prompt` on the chat template and the EOS behind a text.
- `tokenizer` turns texts into ids, truncates them, and finds the span of tokens to pool.
- `batching` sorts the texts of a chunk into batches by a token budget, `packing` lays each batch end to end.

Nothing here runs a model.
"""
