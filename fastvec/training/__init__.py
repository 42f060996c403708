"""The adaptation job behind `fastvec adapt`.

- `plan` settles the `recipe` (options and defaults), the data and the fingerprint before a model is loaded;
- `job` runs it in a `work_folder` beside the output, which becomes the output when it is complete;
- `learner` builds model, adapter, task and data stream; `trainer` lets transformers' Trainer take the steps;
- `stream` gives shuffled, resumable examples; `monitor` records `metrics` and runs `evaluation` on `scored_pairs` and
  held-out rows;
- `saved_folder` writes what other tools open.

The objectives themselves are in `training.objectives`.
"""
