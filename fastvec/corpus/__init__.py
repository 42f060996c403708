"""The corpus, which is what comes in: files to chunks of rows, in order, in bounded memory.

- `locations` turns paths, folders and patterns into a list of files;
- `formats` opens one file, Parquet or Arrow, and reads its rows in record batches; `text_lines` does so for text files;
- `columns` has the rules for Arrow columns: which are text, how large a row is;
- `reader` joins the files to one `Corpus`, chooses the text column and cuts chunks.

Nothing here knows about models or tokens.
"""
