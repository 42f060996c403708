"""What finished outputs contain, for the commands that use vectors: search, dedup, neighbors and map.

- `stored` opens one or several outputs of the same model and settings, and reads their vectors by position, in bounded
  memory.
- `source_texts` finds the texts of rows in the inputs that the outputs were made from.
- `query_encoder` finds the model that made the vectors, and how queries are encoded with it.
"""
