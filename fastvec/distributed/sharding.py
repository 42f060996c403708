"""Splits a model over the ranks by FSDP2: each rank stores a part of every tensor, and gathers a layer when it runs.

A checkpoint has whole tensors under the names of the unwrapped model, whether the model is split or not. So a run may
resume with another number of ranks, and with or without FSDP.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fastvec.errors import ModelError

# tensors of frozen weights are those of the base model, which a run that resumes loads again
_TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)


class Sharding:
    """Splits modules over all ranks, on `device`. Weights are gathered in their own dtype, so nothing else changes.

    Every rank must run every forward and every backward, because each of them gathers weights from all ranks.
    """

    def __init__(self, device: torch.device, ranks: int) -> None:
        self._mesh: DeviceMesh = init_device_mesh(device.type, (ranks,))

    def split_model(self, model: nn.Module) -> None:
        """Split a decoder in place, and move it to the device; its layers are gathered one at a time.

        Raises ModelError for a weight that is a single number.
        """
        for name, weight in model.named_parameters():
            if weight.dim() == 0:
                raise ModelError(f"{name} is a single number, which cannot be split over processes: omit --fsdp")
        for layer in layers(model):
            self.split(layer)
        self.split(model)

    def split(self, module: nn.Module) -> None:
        """Split a module in place, except what is split already."""
        fully_shard(module, mesh=self._mesh, reshard_after_forward=True)


def layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder's layers, which every family has in a list; not the lists inside of layers, of experts."""
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        inside = any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.ModuleList) and not inside:
            found += [layer for layer in module if any(True for _ in layer.parameters())]
    return found


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained tensors, whole, on the CPU; of a split model only on rank 0, empty on others.

    Every rank of a split model must call this.
    """
    found: dict[str, Any] = get_model_state_dict(model, options=_TRAINED)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def load_trained_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Replace trained tensors, split or not, by whole ones; every rank passes the same."""
    set_model_state_dict(model, dict(weights), options=_TRAINED)


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's state by the names of weights, with whole tensors, as `trained_weights` does."""
    return get_optimizer_state_dict(model, optimizer, options=_TRAINED)


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    set_optimizer_state_dict(model, optimizer, state, options=_TRAINED)


def whole(tensor: Any) -> Any:
    """Return a tensor that may be split as a whole one; every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
