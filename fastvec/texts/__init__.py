"""Turns texts into packed token ids.

- `load` loads a checkpoint's tokenizer: with `from_files` if its files fully define it, else with `from_transformers`.
- `special_tokens` applies the checkpoint's rules for BOS, EOS and lower-casing to a tokenizer; `prompt` adds the chat
  template, and the EOS of LLM2Vec, to a text.
- `tokenizer` turns texts into ids, truncates them, and finds the span of tokens to pool; `tokenized` is the result.
- `passages` splits long texts.
- `batching` groups the texts of a chunk into batches by a token budget, and has the default sizes of batches and
  chunks; `packing` concatenates each batch's sequences.

Nothing here runs a model.
"""
