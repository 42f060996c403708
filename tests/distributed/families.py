"""Compares tiny models whole and split, all weights trained: run by torchrun in two processes, with names of families.

Without names, every family is compared.
"""

import os
import sys
from typing import Any

import torch
from torch import distributed as dist
from transformers import CONFIG_MAPPING

from fastvec.checkpoints.families import FAMILIES
from fastvec.decoders.packed_transformers import Decoder, forward_packed
from fastvec.distributed.sharding import Sharding, whole
from fastvec.system.libraries import quiet_libraries
from fastvec.texts.packing import pack
from tests.decoders.test_packed_transformers import random_sequences
from tests.helpers.tiny_families import tiny_config, tiny_model


def largest_errors(model_type: str) -> tuple[float, float]:
    """Return the largest error of a hidden state and of a gradient, each relative to the largest of its tensor."""
    settings = tiny_config(model_type).to_dict()
    own: dict[str, Any] = {name: 0.0 for name, value in settings.items() if "drop" in name and isinstance(value, float)}
    model = tiny_model(model_type, **own).train()
    Decoder(model, bidirectional=True)
    packed = pack(random_sequences())
    states, gradients = [], []
    for split in (False, True):
        if split:
            model.zero_grad()
            Sharding(torch.device("cpu"), 2).split_model(model)
        found = forward_packed(model, packed)
        found.square().sum().backward()  # type: ignore[no-untyped-call]
        states.append(found.detach())
        gradients.append({name: whole(x.grad) for name, x in model.named_parameters() if x.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    errors = [(gradients[1][name] - x).abs().max() / x.abs().max().clamp(min=1e-9) for name, x in gradients[0].items()]
    return float((states[1] - states[0]).abs().max() / states[0].abs().max()), float(torch.stack(errors).max())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for name in sys.argv[1:] or FAMILIES:
        if name in CONFIG_MAPPING:
            with quiet_libraries():
                found = largest_errors(name)
            if dist.get_rank() == 0:
                print(name, "equal" if max(found) < 1e-4 else "different", *found, flush=True)
    dist.barrier()
    os._exit(0)
