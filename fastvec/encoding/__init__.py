"""What `Encoder` is made of.

`chunk_encoder` encodes chunks of tokens, `inputs` reads texts from lists, arrays and columns, `stream` encodes an
iterator of `stream_items`, `similarity` compares vectors, and `progress_bar` shows how far a call is.
"""
