"""What a checkpoint's files say: where they are, which layout they have, and how the model was trained to be used.

`checkpoint.resolve` turns a path or hub id into a `Checkpoint`:

- `hub` finds the folders, `bundled` the model in the package;
- `model_files` reads, checks and hashes single files;
- `sentence_transformers` reads the layout with a `modules.json`;
- `remote_code` recognises what a folder leaves to Python code of its own, which fastvec never runs;
- `families` lists the model types that run.

Nothing here imports torch or transformers, or loads a weight: comparing a job with an existing output takes a moment.
"""
