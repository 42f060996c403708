"""Reads the input corpus: turns files into chunks of rows, in order and in bounded memory.

- `locations` expands paths, folders and glob patterns into a list of files.
- `formats` opens a Parquet or Arrow file and reads its rows in record batches; `text_lines` does so for text files.
- `columns` has the rules for Arrow columns: which contain text and how many bytes a row takes.
- `reader` combines the files into one `Corpus`, chooses the text column and cuts chunks.

This package does not depend on models or tokenizers.
"""
