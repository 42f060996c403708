"""Input files that nobody meant to write: how they are made, and how they are read in processes that may die.

- `trial` reads a file as a job does, in a process with limits, and says how that ended.
- `seeds` writes a small file of each format, and `mutations` changes files: bytes, and fields of a Parquet footer,
  which `thrift` encodes.

`benchmarks.hostile_files` and `benchmarks.fuzz` are the commands.
"""
