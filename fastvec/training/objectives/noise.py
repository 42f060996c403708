"""Training dropout as a pure function of a seed, a sequence's number, and a position in the sequence.

Therefore a sequence gets the same dropout in any batch or micro-batch, on any rank, in the second forward of gradient
checkpointing and gradient caching, and in a run that resumes. There is no generator state to save.
"""

from collections.abc import Sequence

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from fastvec.decoders.packed_transformers import Noise, derived_seed
from fastvec_kernels import dropout, to_device


class NoiseSource:
    """The noise of the current forward and backward, and each token's sequence and position, for feature dropout.

    The layers share this object. A context variable would not work: autograd repeats forwards in its own threads.
    """

    def __init__(self) -> None:
        self._noise: Noise | None = None
        self._tokens = torch.empty(0, 2, dtype=torch.int64)

    def set(self, noise: Noise | None, lengths: Sequence[int], device: torch.device) -> None:
        """Set the noise of the next forward and backward, for packed sequences of `lengths` [n]; None turns it off."""
        self._noise = noise
        if noise is None:
            return
        numbers = np.repeat(np.asarray(noise.numbers, dtype=np.int64), lengths)
        places = np.concatenate([np.arange(length) for length in lengths])
        self._tokens = to_device(np.stack([numbers, places], axis=1), device)

    def drop(self, x: torch.Tensor, p: float, layer: int) -> torch.Tensor:
        """Return `x` [..., T, D], features dropped with probability `p`; unchanged if `p` is 0 or no noise is set."""
        if self._noise is None or p == 0:
            return x
        seed = derived_seed(self._noise.seed, "features", layer)
        return dropout(x.reshape(-1, x.shape[-1]), self._tokens, p=p, seed=seed).view_as(x)


class _FeatureDropout(nn.Module):
    """Replaces the `nn.Dropout` before a LoRA adapter."""

    def __init__(self, p: float, layer: int, source: NoiseSource) -> None:
        super().__init__()
        self._p, self._layer, self._source = p, layer, source

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._source.drop(x, self._p, self._layer)


def control_noise(model: nn.Module) -> NoiseSource:
    """Replace the dropout of every LoRA layer in `model` by fastvec's, and return the source that controls it."""
    source = NoiseSource()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for index, layer in enumerate(layers):
        for name, own in layer.lora_dropout.items():
            if isinstance(own, nn.Dropout):
                layer.lora_dropout[name] = _FeatureDropout(own.p, index, source)
    return source
