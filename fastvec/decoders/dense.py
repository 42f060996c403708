"""The Dense layers of a sentence-transformers folder."""

import torch
from safetensors.torch import load_file
from torch import nn

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.checkpoints.sentence_transformers import DenseLayer
from fastvec.errors import ModelError, one_line


def load_dense(checkpoint: Checkpoint, *, device: torch.device | str) -> nn.Sequential:
    """The Dense layers in float32, one after another; without any, it returns what it is given.

    Raises ModelError where the weights are not those the folder's config.json describes.
    """
    layers: list[nn.Module] = []
    for dense in checkpoint.dense:
        layers += [_linear(dense), getattr(nn, dense.activation)()]
    return nn.Sequential(*layers).requires_grad_(False).to(device)


def _linear(dense: DenseLayer) -> nn.Linear:
    linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias)
    weights = {name.removeprefix("linear."): tensor for name, tensor in load_file(dense.weights).items()}
    try:
        linear.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"{dense.weights} does not fit its config.json: {one_line(error)}") from None
    return linear
