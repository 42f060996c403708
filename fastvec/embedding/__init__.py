"""The embedding job behind `fastvec embed`: read, tokenize, encode, write.

- `options` checks what was asked for;
- `plan` opens the inputs and computes the job's schema and fingerprint before a model is loaded;
- `job` finds out what is left to do, and loads the model;
- `run` runs the stages: `corpus.reader` → `tokenized_chunks` → `encoder` → `output.writer`;
- `estimate` implements `--dry-run`.
"""
