from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from fastvec.checkpoints.checkpoint import resolve
from fastvec.decoders.load import load_dense
from fastvec.errors import ModelError


def test_dense_layers_are_those_of_sentence_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    dense = [Dense(64, 48, activation_function=torch.nn.Tanh()), Dense(48, 16, bias=False, activation_function=None)]
    model = SentenceTransformer(modules=[Transformer(str(tiny_llama)), Pooling(64), *dense], device="cpu")
    model.save(str(tmp_path / "saved"), create_model_card=False)
    vectors = torch.randn(5, 64)
    expected = {"sentence_embedding": vectors}
    for layer in dense:
        expected = layer(expected)
    checkpoint = resolve(tmp_path / "saved")
    loaded = load_dense(checkpoint, device="cpu")
    assert_close(loaded(vectors), expected["sentence_embedding"], rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())

    weights = tmp_path / "saved" / "3_Dense" / "model.safetensors"
    save_file({"linear.weight": torch.zeros(16, 40)}, weights)
    with pytest.raises(ModelError, match=r"3_Dense/model\.safetensors does not fit its config\.json"):
        load_dense(checkpoint, device="cpu")


def test_without_dense_layers_vectors_pass(tiny_llama: Path) -> None:
    vectors = torch.randn(5, 64)
    assert torch.equal(load_dense(resolve(tiny_llama), device="cpu")(vectors), vectors)
