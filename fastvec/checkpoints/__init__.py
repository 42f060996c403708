"""Reads a checkpoint's files: finds them, detects their layout, and determines how the model was trained to be used.

`checkpoint.resolve` turns a path or hub id into a `Checkpoint`:

- `hub` finds the folders, `bundled` the model in the package;
- `model_files` reads, checks and hashes single files;
- `sentence_transformers` reads the layout with a `modules.json`;
- `remote_code` detects what a folder leaves to Python code (its own, or that of transformers 4's tokenizer classes):
  the direction of attention, BOS and EOS. fastvec never runs code from a folder;
- `families` lists the supported model types, and those known not to work.

Nothing here imports torch or transformers or loads weights, so that comparing a job with an existing output is fast.
"""
