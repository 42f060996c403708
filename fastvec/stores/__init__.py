"""Files in object stores: S3, Google Cloud Storage, Azure, the Hugging Face hub, and whatever else fsspec knows.

- `address` parses an address such as `s3://bucket/vecs.arrow`, and refuses one with credentials in it.
- `store` lists, reads, writes and removes files; `errors` turns what a store's library raises into one line.
- `remote_file` reads a file as a stream or at random, and notices that it changed.
- `spool` has the local folders for what is not uploaded yet, and for copies.

All access is through fsspec: pyarrow's file systems, which need no other package, can neither create a file only if
there is none, nor read one only if it is unchanged, nor give an upload up (see `store.upload`).

fsspec and a store's library are imported only when a file in a store is accessed.
"""
