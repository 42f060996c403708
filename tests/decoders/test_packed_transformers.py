from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

from fastvec.checkpoints.families import FAMILIES, REFUSED, document, require_supported
from fastvec.decoders.packed_transformers import Decoder, packed_attention
from fastvec.decoders.self_check import self_check
from fastvec.errors import ModelError
from fastvec.texts.packing import IntArray, pack
from fastvec_kernels import AttentionPlan, attention
from tests import ROOT
from tests.helpers.tiny_families import VOCABULARY, tiny_model

LENGTHS = (1, 7, 3, 16, 7)  # a single token, two equal lengths, one far longer than the tiny models' windows
# this family's eager attention in transformers fails without a mask, and a bidirectional layer has none
ORACLE = {"modernbert-decoder": "sdpa"}


def random_sequences(lengths: tuple[int, ...] = LENGTHS) -> list[IntArray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, length) for length in lengths]


def alone(model: PreTrainedModel, sequences: list[IntArray], *, causal: bool | None) -> torch.Tensor:
    """The oracle: plain transformers, one sequence at a time. If `causal` is None, the config decides."""
    model.set_attn_implementation(ORACLE.get(model.config.model_type, "eager"))
    if causal is not None:
        model.config.is_causal = causal
    with torch.no_grad():
        states = [
            model(input_ids=torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0] for ids in sequences
        ]
    return torch.cat(states)


def assert_same_states(states: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that states agree within 1e-5 after scaling the expected ones into [-1, 1]."""
    torch.testing.assert_close(states / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-5)


def family(model_type: str, **overrides: Any) -> PreTrainedModel:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {model_type}")
    return tiny_model(model_type, **overrides)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_packed_batch_equals_its_sequences_alone(model_type: str) -> None:
    model = family(model_type)
    sequences = random_sequences()
    for causal in (False, True):
        expected = alone(model, sequences, causal=causal)
        decoder = Decoder(model, bidirectional=not causal)
        with torch.no_grad():
            states = decoder(pack(sequences))
        assert states.shape == (sum(LENGTHS), decoder.hidden_size)
        assert_same_states(states, expected)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_token_moves_the_tokens_that_see_it_and_no_others(model_type: str) -> None:
    decoders = {
        bidirectional: Decoder(family(model_type), bidirectional=bidirectional) for bidirectional in (True, False)
    }
    sequences = random_sequences((3, 4, 5))
    changed = [sequences[0], sequences[1].copy(), sequences[2]]
    changed[1][-1] = 3 if changed[1][-1] != 3 else 4
    for bidirectional, decoder in decoders.items():
        with torch.no_grad():
            moved = (decoder(pack(changed)) - decoder(pack(sequences))).abs().amax(dim=1)
        seen_by = [3, 4, 5, 6] if bidirectional else [6]
        expected = [token in seen_by for token in range(12)]
        assert (moved > 1e-4).tolist() == expected
        assert moved[~torch.tensor(expected)].max() < 1e-5  # not zero: an expert's rounding depends on its tokens
        self_check(decoder)


def test_embeddinggemma_keeps_the_window_it_was_trained_with() -> None:
    model = tiny_model("gemma3_text", use_bidirectional_attention=True, sliding_window=8)
    sequences = random_sequences()
    expected = alone(model, sequences, causal=None)
    with torch.no_grad():
        states = Decoder(model, bidirectional=True)(pack(sequences))
        assert_same_states(states, expected)
        with pytest.raises(ModelError, match="its own mask rule, which cannot run causal"):
            Decoder(model, bidirectional=False)(pack(sequences))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradients_are_the_same_under_gradient_checkpointing(reentrant: bool) -> None:
    sequences = random_sequences()

    def gradient(checkpointing: bool) -> torch.Tensor:
        model = tiny_model("llama").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        loss = Decoder(model, bidirectional=True)(pack(sequences)).square().mean()
        torch.autograd.backward(loss)
        found: torch.Tensor | None = model.get_parameter("layers.0.self_attn.q_proj.weight").grad
        assert found is not None
        return found

    expected = gradient(checkpointing=False)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient(checkpointing=True), expected)


@pytest.mark.parametrize(
    ("model_type", "overrides", "longest"),
    [
        ("llama", {}, None),
        ("gpt2", {}, 128),
        ("phimoe", {}, 64),
        ("hunyuan_v1_dense", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, 128),
    ],
)
def test_a_text_longer_than_the_positions_hold_is_refused(
    model_type: str, overrides: dict[str, Any], longest: int | None
) -> None:
    decoder = Decoder(tiny_model(model_type, **overrides), bidirectional=True)
    assert decoder.longest == longest
    with torch.no_grad():
        assert len(decoder(pack(random_sequences((longest or 200, 3))))) == (longest or 200) + 3
        if longest is not None:
            with pytest.raises(
                ModelError, match=f"a text has {longest + 1} tokens: .* allow at most {longest}; lower max_length"
            ):
                decoder(pack(random_sequences((longest + 1, 3))))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bert", "it is an encoder, not a decoder"),
        ("t5", "it is an encoder-decoder, not a decoder"),
        ("mamba", "it carries information between tokens by recurrence"),
        ("qwen3_next", "it carries information between tokens by recurrence"),
        ("lfm2", "it carries information between tokens by recurrence"),
        ("falcon", "it computes its attention itself"),
        ("deepseek_v32", "it attends to a selection of tokens"),
        ("llama4_text", "it attends in chunks"),
        ("gemma3", "it is multimodal"),
        ("no_such_model", "it has not been tested, and attention could be silently wrong"),
    ],
)
def test_other_families_are_refused_with_the_reason(model_type: str, reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        require_supported(model_type)
    message = str(caught.value)
    assert message.startswith(f"model type '{model_type}' is not supported: {reason}")
    assert (
        f"; llama, mistral, qwen3, gemma3_text and others are supported ({len(FAMILIES)} in docs/families.md)"
        in message
    )
    assert "\n" not in message


def test_no_family_is_both_supported_and_refused() -> None:
    refused = [model_type for types in REFUSED.values() for model_type in types.split()]
    assert len(refused) == len(set(refused))
    assert set(refused).isdisjoint(FAMILIES)


def test_the_documented_families_are_these() -> None:
    assert (ROOT / "docs/families.md").read_text() == document()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_self_check_passes_in_half_precision(model_type: str, dtype: torch.dtype) -> None:
    for bidirectional in (True, False):
        self_check(Decoder(tiny_model(model_type, dtype), bidirectional=bidirectional))


def to_transformers_attention(decoder: Decoder, implementation: str) -> None:
    decoder.model.set_attn_implementation(implementation)


def to_the_other_direction(decoder: Decoder, _: str) -> None:
    decoder.model.config.is_causal = decoder.bidirectional


@pytest.mark.parametrize(
    ("bidirectional", "spoil", "implementation", "complaint"),
    [
        (True, to_the_other_direction, "", "ignore later tokens although it should run bidirectional"),
        (False, to_the_other_direction, "", "depend on later tokens although it should run causal"),
        (True, to_transformers_attention, "sdpa", "depend on other texts of the batch"),
        (True, to_transformers_attention, "eager", "depend on other texts of the batch"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_self_check_catches_attention_that_is_not_ours(
    bidirectional: bool,
    spoil: Callable[[Decoder, str], None],
    implementation: str,
    complaint: str,
    dtype: torch.dtype,
) -> None:
    decoder = Decoder(tiny_model("llama", dtype), bidirectional=bidirectional)
    spoil(decoder, implementation)
    with pytest.raises(ModelError, match=f"the states of this llama model {complaint}"):
        self_check(decoder)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_self_check_catches_a_leak(bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan, **options: Any) -> torch.Tensor:
        return attention(q, k, v, AttentionPlan.build([plan.tokens]), **options)

    monkeypatch.setattr("fastvec.decoders.packed_transformers.attention", leaking)
    with pytest.raises(ModelError, match="depend on other texts of the batch"):
        self_check(Decoder(tiny_model("llama"), bidirectional=bidirectional))


def test_self_check_names_weights_that_are_not_finite() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("norm.weight").fill_(torch.inf)
    with pytest.raises(ModelError, match=r"the states of this llama model are not finite in torch\.float32"):
        self_check(Decoder(model, bidirectional=True))


def test_a_model_called_without_its_decoder_is_refused() -> None:
    model = Decoder(tiny_model("llama"), bidirectional=True).model
    with pytest.raises(ModelError, match="call it through fastvec's Decoder"):
        model(input_ids=torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, r"a padding mask \(1, 3\) came with packed sequences"),
        ({"input_ids": torch.tensor([[5, 6, 7], [5, 6, 7]])}, "a PackedMask mask over 2 rows"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, "attends with a Tensor mask over 1 rows"),
        ({"position_bias": torch.ones(1)}, "attends with unsupported arguments: position_bias"),
    ],
)
def test_what_would_change_attention_in_silence_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    model = Decoder(tiny_model("llama"), bidirectional=True).model
    with packed_attention(AttentionPlan.build([3])), pytest.raises(ModelError, match=complaint):
        model(**{"input_ids": torch.tensor([[5, 6, 7]]), "use_cache": False, **arguments})


def test_a_mask_of_ones_is_no_padding() -> None:
    decoder = Decoder(tiny_model("llama"), bidirectional=True)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), packed_attention(AttentionPlan.build([3])):
        states = decoder.model(input_ids=ids, attention_mask=torch.ones(1, 3), use_cache=False).last_hidden_state[0]
        assert torch.equal(states, decoder(pack([ids[0].numpy()])))


def test_attention_dropout_is_refused() -> None:
    decoder = Decoder(tiny_model("llama", attention_dropout=0.1).train(), bidirectional=True)
    with pytest.raises(ModelError, match=r"uses attention dropout 0\.1"):
        decoder(pack(random_sequences()))
