from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from fastvec.decoders.packed_transformers import Decoder, Noise, derived_seed, forward_packed
from fastvec.system.libraries import quiet_libraries
from fastvec.texts.packing import pack
from fastvec.training.objectives.noise import NoiseSource, control_noise
from tests.decoders.test_packed_transformers import random_sequences
from tests.training.steps import gradients

LENGTHS = (9, 4, 9)


@pytest.fixture
def tuned(tiny_llama: Path) -> tuple[PeftModel, NoiseSource]:
    """A Llama with LoRA adapters whose effect is not zero, and the source of their dropout noise."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).model
    Decoder(model, bidirectional=True)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules=["q_proj", "down_proj"])
    with quiet_libraries():
        lora = get_peft_model(model, config)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    return lora, control_noise(lora)


def run(tuned: tuple[PeftModel, NoiseSource], numbers: list[int], seed: int = 1, p: float = 0.3) -> list[torch.Tensor]:
    """Return each sequence's hidden states. Number n keys the noise and picks sequence n % 3 of a fixed list."""
    model, source = tuned
    sequences = [random_sequences(LENGTHS)[number % 3] for number in numbers]
    packed = pack(sequences)
    noise = Noise(seed=seed, numbers=numbers, attention_dropout=p)
    source.set(noise, packed.lengths, torch.device("cpu"))
    with torch.no_grad():
        states = forward_packed(model, packed, noise)
    source.set(None, (), torch.device("cpu"))
    return list(torch.split(states, list(packed.lengths)))


def test_a_sequence_has_the_same_noise_in_any_batch(tuned: tuple[PeftModel, NoiseSource]) -> None:
    first, _, third = run(tuned, [0, 1, 2])
    third_again, first_again = run(tuned, [2, 0])
    torch.testing.assert_close(first_again, first, rtol=0, atol=1e-5)
    torch.testing.assert_close(third_again, third, rtol=0, atol=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_another_number_or_seed_has_other_noise(tuned: tuple[PeftModel, NoiseSource], p: float) -> None:
    """With p = 0, the noise comes only from the adapters' dropout."""
    first, copy = run(tuned, [0, 3], p=p)
    (other,) = run(tuned, [0], seed=2, p=p)
    assert (first - copy).abs().max() > 1e-3
    assert (first - other).abs().max() > 1e-3


def test_without_noise_nothing_is_dropped_in_training_mode_either(tuned: tuple[PeftModel, NoiseSource]) -> None:
    model, _ = tuned
    packed = pack(random_sequences(LENGTHS))
    with torch.no_grad():
        assert torch.equal(forward_packed(model.train(), packed), forward_packed(model.eval(), packed))


def test_derived_seeds_differ_and_fit_64_bits() -> None:
    seeds = [derived_seed(seed, step, layer) for seed in (0, 42) for step in range(20) for layer in ("attention", 3)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_gradient_checkpointing_repeats_the_noise(tuned: tuple[PeftModel, NoiseSource]) -> None:
    model, source = tuned
    packed = pack(random_sequences(LENGTHS))
    noise = Noise(seed=3, numbers=[0, 1, 2], attention_dropout=0.3)
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            with quiet_libraries():
                model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        source.set(noise, packed.lengths, torch.device("cpu"))
        states = forward_packed(model, packed, noise)
        states.square().sum().backward()  # type: ignore[no-untyped-call]
        source.set(None, (), torch.device("cpu"))
        found.append(gradients(model))
    assert len(found[0]) == 8
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
