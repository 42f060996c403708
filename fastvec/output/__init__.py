"""The output, which is what goes out: one Arrow file, complete or resumable, and never in between.

- `writer` writes it: `journal` records which chunks are durable, `arrow_file` makes the file's bytes, `vector_column`
  the vectors' column, and `ownership` decides whether a job may write at a path.
- `reader` opens a finished output; `verify` and `inspect` are the commands of these names.

Nothing here knows about models or corpora: a job is a fingerprint.
"""
