"""An embedding job in one process: read, tokenize, encode, write.

- `options` checks what was asked for;
- `plan` opens the inputs and computes the job's schema and fingerprint before a model is loaded;
- `job` finds out what is left to do of a file, and loads the model;
- `run` runs the stages: `corpus.reader` → `tokenized_chunks` → `encoded_chunks` → `output.writer`;
- `measurements` collects what the job's report shows beyond its totals;
- `estimate` implements `--dry-run`.
"""
