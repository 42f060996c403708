"""Reads a checkpoint's files: finds them, detects their layout, and determines how the model was trained to be used.

`checkpoint.resolve` turns a path or hub id into a `Checkpoint`:

- `hub` finds the folders, `bundled` the model in the package;
- `model_files` reads, checks and hashes single files;
- `sentence_transformers` reads the layout with a `modules.json`;
- `remote_code` detects what a folder leaves to its own Python code, which fastvec never runs;
- `families` lists the supported model types.

Nothing here imports torch or transformers or loads weights, so that comparing a job with an existing output is fast.
"""
