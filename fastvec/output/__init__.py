"""Writes and reads the output: one Arrow or Parquet file that is always either complete or resumable.

- `writer` writes it: `journal` records which chunks are durable, `arrow_file` encodes the file's parts, `parquet_file`
  a whole Parquet file, `vector_column` builds the vector column, and `ownership` decides whether a job may write to a
  path.
- `earlier` finds the vectors of an earlier output that a run reuses.
- `reader` opens a finished output; `verify`, `inspect`, `convert` and `merge` implement the commands of these names.

This package does not depend on models or corpora: it identifies a job by its fingerprint.
"""
