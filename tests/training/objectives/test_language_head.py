import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fastvec.checkpoints.families import FAMILIES
from fastvec.training.objectives.language_head import LanguageHead
from tests.helpers.tiny_families import VOCABULARY, tiny_config


@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_are_the_families_own(model_type: str) -> None:
    """Includes every softcap, scale and projection that a family applies in its causal model."""
    if model_type not in CONFIG_MAPPING or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"the installed transformers has no causal {model_type}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        expected = model(input_ids=ids, use_cache=False).logits[0]
        head = LanguageHead(model)
        logits = head(states[[2, 5, 5]])
    assert head.vocabulary == VOCABULARY
    torch.testing.assert_close(logits, expected[[2, 5, 5]], rtol=1e-4, atol=1e-5)
    assert model.base_model(input_ids=ids, use_cache=False).last_hidden_state.shape[1] == 17  # the model is unchanged
