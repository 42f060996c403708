"""The options of an adaptation: which apply to an objective, their defaults, and their valid ranges."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from fastvec.errors import UsageError
from fastvec.texts.tokenizer import is_utf8

Objective = Literal["mntp", "simcse", "contrastive", "distil"]
Schedule = Literal["linear", "cosine"]

# DEFAULTS lists what differs from the defaults of `Recipe`; OWN_OPTIONS the options that apply to some objectives only.
# The defaults are from the LLM2Vec paper (arXiv 2404.05961, appendix), which does not cover distillation.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mntp": {"batch_size": 32, "max_length": 512, "lr": 5e-5},
    "simcse": {"batch_size": 128, "max_length": 128, "lr": 3e-5, "attention_dropout": 0.3, "temperature": 0.05},
    "contrastive": {"batch_size": 512, "max_length": 512, "lr": 2e-4, "temperature": 0.02, "grad_cache": 64},
    "distil": {"batch_size": 256, "max_length": 128, "lr": 2e-4},
}
OWN_OPTIONS = {
    "mntp": ("mask_probability", "mask_style", "mask_token"),
    "simcse": ("attention_dropout", "temperature", "instruction", "pooling", "pool_tokens"),
    "contrastive": (
        "query",
        "positive",
        "negatives",
        "temperature",
        "instruction",
        "attention_dropout",
        "pooling",
        "pool_tokens",
    ),
    "distil": ("vectors", "instruction", "pooling", "pool_tokens"),
}
VECTORS = "embedding"  # the column that `fastvec embed` writes
CONTRASTIVE_WARMUP = 300
# The defaults of DEFAULTS are for adapters. All weights of a pretrained decoder take a smaller learning rate, and a
# warmup, or they lose what they know in the first steps.
FULL_LR, FULL_WARMUP = 2e-5, 0.05  # at most; of the steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All options, resolved. `batch_size` is per rank; `grad_cache` is the maximum number of texts in one forward."""

    objective: Objective
    steps: int = 1000
    batch_size: int = 32
    max_length: int = 512
    lr: float = 5e-5
    warmup: int = 0
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    seed: int = 42
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    full: bool = False
    attention_dropout: float = 0.0
    temperature: float = 0.05
    grad_cache: int | None = None
    mask_probability: float = 0.2
    mask_style: Literal["bert", "all"] = "bert"
    mask_token: str | None = None
    pool_tokens: Literal["text", "all"] | None = None
    pooling: str | None = None
    instruction: str | None = None
    query: str | None = None
    positive: str | None = None
    negatives: tuple[str, ...] = ()
    vectors: str = VECTORS
    hold_out: float = 0.01

    def to_json(self) -> dict[str, Any]:
        """Return the options that apply to this objective."""
        foreign = {name for own in OWN_OPTIONS.values() for name in own} - set(OWN_OPTIONS[self.objective])
        return {name: value for name, value in asdict(self).items() if name not in foreign}


def resolve_recipe(objective: str, **given: Any) -> Recipe:
    """Return the recipe of an objective with the options `given`; None means the default.

    Raises UsageError for an unknown objective, an option of another objective, or a value out of range.
    """
    if objective not in DEFAULTS:
        raise UsageError(f"unknown objective {objective!r}: choose {', '.join(DEFAULTS)}")
    chosen = {name: value for name, value in given.items() if value not in (None, ())}
    owned = {name for own in OWN_OPTIONS.values() for name in own} - set(OWN_OPTIONS[objective])
    if wrong := sorted(owned & chosen.keys()):
        raise UsageError(f"--{_flag(wrong[0])} does not apply to --objective {objective}: omit it")
    if chosen.get("full") and (lora := sorted(name for name in chosen if name.startswith("lora_"))):
        raise UsageError(f"--{_flag(lora[0])} and --full were both given: choose one")
    values = {**DEFAULTS[objective], **chosen}
    steps = values.get("steps", Recipe.__dataclass_fields__["steps"].default)
    if chosen.get("full") and "lr" not in chosen:
        values["lr"] = min(values["lr"], FULL_LR)
    if objective == "contrastive":
        values.setdefault("warmup", min(CONTRASTIVE_WARMUP, steps * 3 // 10))
        for name in ("query", "positive"):
            if name not in values:
                raise UsageError(f"--objective contrastive needs --{name}: name the column")
    elif chosen.get("full"):
        values.setdefault("warmup", int(steps * FULL_WARMUP))
    _check(values)
    return Recipe(objective=objective, **values)  # type: ignore[arg-type]  # checked above


def _check(values: Mapping[str, Any]) -> None:
    bounds = {  # inclusive
        "steps": (1, None),
        "batch_size": (1, None),
        "max_length": (2, None),
        "lr": (0.0, None),
        "warmup": (0, None),
        "weight_decay": (0.0, None),
        "seed": (0, 2**32 - 1),  # the range of numpy.random.seed
        "lora_r": (1, None),
        "lora_alpha": (1, None),
        "lora_dropout": (0.0, 0.99),
        "attention_dropout": (0.0, 0.99),
        "temperature": (1e-4, None),
        "grad_cache": (1, None),
        "mask_probability": (0.01, 1.0),
        "hold_out": (0.0, 0.5),
    }
    for name, (low, high) in bounds.items():
        value = values.get(name)
        if value is not None and (not value >= low or (high is not None and value > high)):
            to = " or more" if high is None else f" to {high}"
            raise UsageError(f"--{_flag(name)} {value} is out of range: give {low}{to}")
    for name, known in {
        "schedule": get_args(Schedule),
        "mask_style": ("bert", "all"),
        "pool_tokens": ("text", "all"),
    }.items():
        if (value := values.get(name)) is not None and value not in known:
            raise UsageError(f"--{_flag(name)} {value!r} is not known: choose {', '.join(known)}")
    if (token := values.get("mask_token")) is not None and not is_utf8(token):
        raise UsageError(f"--mask-token {token!r} is not valid UTF-8: encode it as UTF-8")
    if unknown := values.keys() - {field.name for field in fields(Recipe)}:
        raise TypeError(f"adapt has no option {sorted(unknown)[0]!r}")


def _flag(name: str) -> str:
    return {"negatives": "negative"}.get(name, name).replace("_", "-")
