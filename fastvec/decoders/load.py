"""Load a checkpoint's decoder and Dense layers, without transformers if its files are of the plain Llama layout."""

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.checkpoints.sentence_transformers import DenseLayer
from fastvec.decoders.from_files import PlainDecoder, decoder_from_files
from fastvec.errors import ModelError, one_line

if TYPE_CHECKING:  # imported only for checkpoints that need transformers
    from fastvec.decoders.packed_transformers import Decoder


def load_decoder(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | str, bidirectional: bool, positions: int
) -> "Decoder | PlainDecoder":
    """Load the decoder for sequences of up to `positions` tokens; raise ModelError if the files make none."""
    plain = decoder_from_files(checkpoint, dtype=dtype, device=device, bidirectional=bidirectional, positions=positions)
    if plain is not None:
        return plain
    from fastvec.decoders.from_transformers import load_model
    from fastvec.decoders.packed_transformers import Decoder

    return Decoder(load_model(checkpoint, dtype=dtype, device=device), bidirectional=bidirectional)


def load_dense(checkpoint: Checkpoint, *, device: torch.device | str) -> nn.Sequential:
    """Load the Dense layers and their activations, in float32; without any, the result is the identity.

    Raises ModelError if the weights do not match the folder's config.json.
    """
    layers: list[nn.Module] = []
    for dense in checkpoint.dense:
        layers += [_linear(dense), getattr(nn, dense.activation)()]
    return nn.Sequential(*layers).requires_grad_(False).to(device)


def _linear(dense: DenseLayer) -> nn.Linear:
    # without memory until the weights are known to have its shape
    linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias, device="meta")
    weights = {name.removeprefix("linear."): tensor for name, tensor in load_file(dense.weights).items()}
    try:
        linear.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{dense.weights} does not fit its config.json: {one_line(error)}") from None
    return linear.float()
