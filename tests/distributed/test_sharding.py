import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from fastvec.decoders.packed_transformers import Decoder, forward_packed
from fastvec.distributed.sharding import (
    Sharding,
    layers,
    load_optimizer_state,
    load_trained_weights,
    optimizer_state,
    trained_weights,
    whole,
)
from fastvec.errors import ModelError
from fastvec.system.libraries import quiet_libraries
from fastvec.texts.packing import pack
from tests import ROOT
from tests.decoders.test_packed_transformers import random_sequences
from tests.helpers.processes import environment
from tests.helpers.tiny_families import tiny_model

CPU = torch.device("cpu")
SAMPLE = ("llama", "gemma3_text", "qwen3", "qwen3_moe", "deepseek_v3", "gpt2", "gpt_neox", "opt", "phi3", "gpt_oss")


@pytest.fixture(scope="module", autouse=True)
def only_rank() -> Iterator[None]:
    """Be the only rank: its part of a tensor is all of it, but everything runs as with more."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


def adapted() -> nn.Module:
    model = tiny_model("llama").requires_grad_(False)
    Decoder(model, bidirectional=True)
    torch.manual_seed(1)
    with quiet_libraries():
        tuned: nn.Module = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return tuned


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    packed = pack(random_sequences())
    forward_packed(model, packed).square().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


@pytest.mark.parametrize("before", [False, True])
def test_a_checkpoint_of_a_split_model_is_that_of_a_whole_one(before: bool) -> None:
    """One that was split before its checkpoint continues whole, and the other way round; neither notices."""
    runs = []
    for changes in (False, True):
        model = adapted()
        if before:
            Sharding(CPU, 1).split_model(model)
        optimizer = torch.optim.AdamW(trained(model), lr=0.01)
        step(model, optimizer)
        if changes:
            weights, state = trained_weights(model), optimizer_state(model, optimizer)
            assert all(type(tensor) is torch.Tensor for tensor in weights.values())
            model = adapted()
            if not before:
                Sharding(CPU, 1).split_model(model)
            optimizer = torch.optim.AdamW(trained(model), lr=0.01)
            load_trained_weights(model, weights)
            load_optimizer_state(model, optimizer, state)
        step(model, optimizer)
        runs.append((trained_weights(model), optimizer_state(model, optimizer)))
    (weights, state), (other_weights, other_state) = runs
    assert len(weights) == 8  # two for each of four layers, and no weight of the base
    torch.testing.assert_close(other_weights, weights, rtol=0, atol=0)
    torch.testing.assert_close(other_state["state"], state["state"], rtol=0, atol=0)


def test_only_layers_and_what_is_left_are_split_and_every_weight_is() -> None:
    model = adapted()
    assert [type(layer).__name__ for layer in layers(model)] == ["LlamaDecoderLayer"] * 4
    moe = tiny_model("qwen3_moe")
    assert [type(layer).__name__ for layer in layers(moe)] == ["Qwen3MoeDecoderLayer"] * 4
    Sharding(CPU, 1).split_model(model)
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    weight = next(model.parameters())
    assert torch.equal(whole(weight), whole(whole(weight)))


def test_a_single_number_cannot_be_split() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(ModelError, match="scale is a single number, which cannot be split over processes: omit --fsdp"):
        Sharding(CPU, 1).split_model(model)


def compare_families(names: tuple[str, ...]) -> tuple[list[list[str]], str]:
    """Return the names and results of the families that two processes compared, and what they wrote if they failed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "tests.distributed.families", *names]
    own = {**environment(), "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, env=own, cwd=ROOT, check=False, timeout=280, capture_output=True, text=True)
    return [line.split()[:2] for line in done.stdout.splitlines()], done.stderr if done.returncode else ""


@pytest.mark.slow
def test_families_run_split_as_they_run_whole() -> None:
    """A sample. `torchrun --nproc-per-node=2 -m tests.distributed.families` compares all.

    torch 2.13 with gloo ended a process by a segmentation fault twice among thousands of families, and not again with
    the same ones. After one, and only after one, the families that have no result are compared once more: an error of
    Python's, another result, a second fault, or one after the last result fails.
    """
    found, failure = compare_families(SAMPLE)
    left = SAMPLE[len(found) :]
    if left and "(SIGSEGV)" in failure:
        print(failure)
        rest, failure = compare_families(left)
        found += rest
    assert not failure, failure
    assert found == [[name, "equal"] for name in SAMPLE]
