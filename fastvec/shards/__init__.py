"""An output in shards: a folder of Arrow files, each with a range of the rows, and a manifest that lists them.

- `folder` lists, reads and publishes the files of the folder.
"""
