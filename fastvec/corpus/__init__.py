"""Reads the input corpus: turns files into chunks of rows, in order and in bounded memory.

- `locations` expands paths, folders and glob patterns into a list of files.
- `formats` opens a file and reads its rows in record batches.
- `columns` has the rules for Arrow columns: which contain text and how many bytes a row takes.
- `template` puts the text of a row together from its columns.
- `copies` makes local files of stdin, tables and datasets of the hub.
- `opening` combines the files into one `Corpus` and checks their columns; `text_column` chooses the one to embed.
- `reader` cuts the corpus into chunks, and `shard_ranges` into shards.

This package does not depend on models or tokenizers.
"""
