"""Reads the input corpus: turns files into chunks of rows, in order and in bounded memory.

- `locations` expands paths, folders and glob patterns into a list of files.
- `formats` opens a file and reads its rows in record batches.
- `columns` has the rules for Arrow columns: which contain text and how many bytes a row takes.
- `template` puts the text of a row together from its columns.
- `opening` combines the files into one `Corpus`, chooses the text column and checks the others.
- `reader` cuts the corpus into chunks.

This package does not depend on models or tokenizers.
"""
