import pytest

from fastvec.errors import UsageError
from fastvec.training.recipe import resolve_recipe

COLUMNS = {"query": "q", "positive": "p"}


@pytest.mark.parametrize(
    ("objective", "given", "expected"),
    [  # LLM2Vec's training settings
        ("mntp", {}, {"batch_size": 32, "max_length": 512, "lr": 5e-5, "warmup": 0, "mask_probability": 0.2}),
        (
            "simcse",
            {},
            {"batch_size": 128, "max_length": 128, "lr": 3e-5, "attention_dropout": 0.3, "temperature": 0.05},
        ),
        ("contrastive", COLUMNS, {"batch_size": 512, "lr": 2e-4, "warmup": 300, "temperature": 0.02, "grad_cache": 64}),
        ("contrastive", {**COLUMNS, "steps": 100}, {"warmup": 30}),
    ],
)
def test_defaults_are_the_papers(objective: str, given: dict[str, object], expected: dict[str, object]) -> None:
    recipe = resolve_recipe(objective, **given)
    assert {name: getattr(recipe, name) for name in expected} == expected
    shared = (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout, recipe.schedule, recipe.weight_decay)
    assert shared == (16, 32, 0.05, "linear", 0.0)


def test_all_weights_take_smaller_steps_at_first_unless_told_otherwise() -> None:
    recipes = [resolve_recipe("distil", full=full) for full in (None, True)]
    assert [(one.lr, one.warmup) for one in recipes] == [(2e-4, 0), (2e-5, 50)]
    contrastive = resolve_recipe("contrastive", **COLUMNS, full=True)
    assert (contrastive.lr, contrastive.warmup) == (2e-5, 300)
    given = resolve_recipe("mntp", full=True, lr=1e-3, warmup=7)
    assert (given.lr, given.warmup) == (1e-3, 7)


def test_none_is_the_default_and_a_given_value_is_kept() -> None:
    recipe = resolve_recipe("mntp", lr=None, steps=7, negatives=(), full=None)
    assert (recipe.lr, recipe.steps, recipe.full) == (5e-5, 7, False)


def test_the_record_leaves_out_what_an_objective_does_not_have() -> None:
    said = resolve_recipe("mntp").to_json()
    assert "mask_style" in said
    assert not {"temperature", "query", "negatives", "attention_dropout"} & said.keys()


def test_an_unknown_option_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="adapt has no option 'learning_rate'"):
        resolve_recipe("mntp", learning_rate=1.0)
    for seed in (-1, 2**32):
        with pytest.raises(UsageError, match=f"--seed {seed} is out of range: give 0 to 4294967295"):
            resolve_recipe("mntp", seed=seed)
