"""The file formats of a corpus. Each module opens a file of its format, and reads its rows in batches of bounded size.

- `files` opens local files and those of a store;
- `source` detects the format and dispatches;
- `parquet` and `arrow` read columnar files, whose footers or headers count their rows;
- `lines` goes through text files by lines, `json_lines` parses these as objects, `delimited` reads CSV and TSV;
- `errors` turns what the readers raise into one line.
"""
