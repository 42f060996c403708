"""What a model is trained on: MNTP, SimCSE, contrastive pairs, distillation.

- `losses` has the losses as pure functions of tensors, each with a reference implementation.
- A `task` makes examples from texts and computes a batch's loss and gradients: `mntp`, `contrastive`, `distillation`.
- `topics` orders the examples of distillation so that half of the batches have one topic each.
- `readout` encodes texts with gradients, in parts (GradCache) and over all ranks; `language_head` computes logits.
- `noise` derives dropout from a seed and a sequence's number, so that a step can be repeated exactly.

Nothing here depends on earlier steps, files or optimizers.
"""
