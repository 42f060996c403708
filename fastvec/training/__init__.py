"""The adaptation job behind `fastvec adapt`.

- `plan` resolves the `recipe` (options and defaults), the data and the fingerprint before a model is loaded.
- `job` runs it in a `work_folder` beside the output, which is renamed to the output when it is complete.
- `learner` builds model, adapter, task and data stream; `trainer` runs the steps through transformers' Trainer.
- `stream` yields examples in an order that can be resumed: shuffled, or as the objective arranges them.
- `monitor` decides when to evaluate, and records `metrics`; `evaluation` runs the model without gradients, and computes
  Spearman's correlation on `scored_pairs`.
- `saved_folder` writes the model folder that fastvec and other tools open.

The objectives themselves are in `training.objectives`.
"""
