"""What a model is trained on: MNTP, SimCSE, contrastive pairs, distillation.

- `losses` are pure functions of tensors, each with a reference implementation.
- A `task` makes examples of texts and takes a training step on a batch of them: `mntp`, `contrastive`, `distillation`.
- `readout` encodes texts with gradients, in parts (GradCache) and over all ranks; `language_head` gives logits.
- `noise` derives dropout from a seed and a sequence's number, so that a step can be repeated exactly.

Nothing here knows about steps already taken, files or optimisers.
"""
