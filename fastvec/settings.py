"""Resolves all settings that determine a vector: the checkpoint's own rules, and what the user chooses instead.

No weights are loaded here, so that a job that is finished or refused ends at once.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fastvec.checkpoints.checkpoint import TEXT_RULES, Checkpoint, Pooling, resolve
from fastvec.errors import ModelError, UsageError, quoted
from fastvec.texts.prompt import text_affixes
from fastvec.texts.tokenizer import LoadedTokenizer, TextRecipe, TextTokenizer, is_utf8

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["int8", "fp8"]
FP8_CAPABILITY = (9, 0)  # Hopper


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSettings:
    """A checkpoint with every choice made. `dims` is the width of the vectors.

    `device` and `dtype` are those of the forward pass; `auto_dtype` says that fastvec chose the dtype. If `quantize` is
    not None, the decoder's linear layers multiply in that type, with weights of `weight_bits` bits.
    """

    checkpoint: Checkpoint
    device: str
    dtype: str
    auto_dtype: bool
    quantize: str | None
    weight_bits: int
    pooling: Pooling
    normalize: bool
    max_length: int
    bidirectional: bool
    bidirectional_reason: str
    dims: int

    def prefix(self, instruction: str | None = None, prompt_name: str | None = None) -> str:
        """Return the prompt or instruction that precedes every text.

        A prompt is used as it is. An instruction is stripped and followed by a space, unless the checkpoint takes
        instructions verbatim.

        Raises UsageError for both at once, for an instruction that is not UTF-8, and for a prompt that the checkpoint
        does not have.
        """
        checkpoint = self.checkpoint
        if instruction is not None and prompt_name is not None:
            raise UsageError("an instruction and a prompt name were both given: choose one")
        if instruction is not None:
            if not isinstance(instruction, str):
                raise UsageError(f"the instruction is a {type(instruction).__name__}: expected a string, for all texts")
            if not is_utf8(instruction):
                raise UsageError(f"the instruction {instruction!r} is not valid UTF-8: encode it as UTF-8")
            stripped = instruction.strip()
            return instruction if checkpoint.verbatim else f"{stripped} " if stripped else ""
        name = prompt_name or checkpoint.default_prompt_name
        if name is None:
            return ""
        if name not in checkpoint.prompts:
            known = ", ".join(sorted(checkpoint.prompts)) or "none"
            raise UsageError(f"{checkpoint.name} has no prompt named {quoted(name)}: it has {known}")
        return checkpoint.prompts[name]

    def prompt_of(self, kind: str) -> tuple[str | None, str | None]:
        """Return the instruction or the name of the prompt for texts of a `kind`, `query` or `document`.

        sentence-transformers gives every checkpoint these two prompts, empty if it has none.
        """
        return (None, kind) if kind in self.checkpoint.prompts else ("", None)

    @property
    def arithmetic(self) -> str:
        """The number formats of the forward pass, for the output's metadata and the fingerprint."""
        if self.quantize is None:
            return self.dtype
        return f"{self.dtype}, products in {self.quantize} with weights of {self.weight_bits} bits"

    def in_dtype_of(self, arithmetic: object) -> "EncoderSettings":
        """Return these settings in the dtype with which they have this `arithmetic`; unchanged if there is none."""
        same = (replace(self, dtype=dtype) for dtype in get_args(Dtype))
        return next((settings for settings in same if settings.arithmetic == arithmetic), self)

    def on_this_machine(self) -> "EncoderSettings":
        """Return these settings, made on another machine, with the paths that the model's files have on this one.

        A model of the hub that is not in this machine's cache is downloaded, at the same commit.
        Raises ModelError if the model is not here, or another one has its name.
        """
        there = self.checkpoint
        paths = (there.base, there.tokenizer, *there.adapters, *(layer.weights for layer in there.dense))
        if all(path.exists() for path in paths):
            return self
        here = resolve(there.name, adapters=there.added, revision=there.revision)
        if (here.weights_hash, here.tokenizer_hash) != (there.weights_hash, there.tokenizer_hash):
            raise ModelError(f"{there.name} is another model here: put the same files under this name")
        found = replace(there, base=here.base, tokenizer=here.tokenizer, adapters=here.adapters, dense=here.dense)
        return replace(self, checkpoint=found)

    @property
    def pooled_tokens(self) -> str:
        """The tokens that are pooled; `last` and `first` pooling use the whole sequence, including EOS and BOS."""
        return "all" if self.pooling in ("last", "first") else self.checkpoint.pooled_tokens

    def pooled_span(self, prefix: str) -> Literal["sequence", "text", "after_prefix"]:
        """Return which tokens of a sequence with this prefix are pooled.

        Raises UsageError for weighted_mean with a prompt that is not pooled, the only combination that would not match
        sentence-transformers: its weights count the prompt's tokens too.
        """
        if self.pooled_tokens == "text":
            return "text"
        excluded = self.checkpoint.pooled_tokens == "all" and not self.checkpoint.include_prompt and prefix
        if self.pooling == "last" or not excluded:
            return "sequence"
        if self.pooling == "weighted_mean":
            raise UsageError("weighted_mean with a prompt that is not pooled is not available: choose another pooling")
        return "after_prefix"

    def text_tokenizer(
        self,
        tokenizer: LoadedTokenizer,
        instruction: str | None = None,
        prompt_name: str | None = None,
        *,
        embeddings: int | None = None,
    ) -> TextTokenizer:
        """Return what turns texts into token ids by the checkpoint's rules; raises UsageError as `prefix` does.

        `embeddings` is passed to `TextTokenizer`.
        """
        checkpoint, prefix = self.checkpoint, self.prefix(instruction, prompt_name)
        before, after = text_affixes(checkpoint, tokenizer)
        recipe = TextRecipe(
            prefix=before + prefix,
            suffix=after,
            max_length=self.max_length,
            text_max_length=checkpoint.text_max_length,
            pooled=self.pooled_span(prefix),
            strip_end=checkpoint.strip,
        )
        return TextTokenizer(tokenizer, recipe, embeddings=embeddings)

    def fingerprint(self, instruction: str | None, prompt_name: str | None) -> dict[str, Any]:
        """Return the values that two runs must share for their vectors to be the same.

        The revision is none of them: a commit that changes only a hub model's card has the same files.
        """
        checkpoint = self.checkpoint
        return {
            "weights": checkpoint.weights_hash,
            "tokenizer": checkpoint.tokenizer_hash,
            "bidirectional": self.bidirectional,
            "instruction": self.prefix(instruction, prompt_name),
            "pooling": self.pooling,
            "pooled_tokens": self.pooled_tokens,
            "max_length": self.max_length,
            "normalize": self.normalize,
            "dims": self.dims,
            "dtype": self.arithmetic,
            **{rule: getattr(checkpoint, rule) for rule in TEXT_RULES},
            **checkpoint.special_tokens.fingerprint,
        }


def resolve_settings(
    model: str | Path | None = None,
    *,
    adapters: Sequence[str | Path] = (),
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    bidirectional: bool | None = None,
    eos: bool | None = None,
    dims: int | None = None,
) -> EncoderSettings:
    """Read a checkpoint's small files and make every choice; None leaves a choice to the checkpoint.

    Args:
        model: A folder or hub id; None is the bundled model.
        adapters: PEFT folders or hub ids, merged in this order.
        revision: The revision of a hub repository.
        device: `auto`, `cpu` or `cuda`.
        dtype: The dtype of the computation: `auto`, `float32`, `bfloat16` or `float16`.
        quantize: `int8` (CPUs) or `fp8` (GPUs from Hopper on); None multiplies in `dtype`.
        pooling: `mean`, `weighted_mean`, `last` or `first`.
        normalize: Whether vectors have length 1.
        max_length: The maximum number of tokens in a sequence.
        bidirectional: Whether attention is bidirectional, or else causal.
        eos: Whether the tokenizer's EOS ends every sequence.
        dims: Keep only the first `dims` dimensions of a vector.

    Raises:
        ModelError: The checkpoint cannot be used.
        UsageError: The checkpoint or this machine does not support a choice.
    """
    _one_of("device", device, get_args(Device))
    _one_of("dtype", dtype, get_args(Dtype))
    if pooling is not None:
        _one_of("pooling", pooling, get_args(Pooling))
    if quantize is not None:
        _one_of("quantize", quantize, get_args(Quantize))
    checkpoint = resolve(model, adapters=adapters, revision=revision)
    settled_device = _resolve_device(device)
    if eos is not None:
        checkpoint = _with_eos(checkpoint, eos)
    reason = checkpoint.bidirectional_reason if bidirectional is None else "as asked for"
    return EncoderSettings(
        checkpoint=checkpoint,
        device=settled_device,
        dtype=resolve_dtype(settled_device) if dtype == "auto" else dtype,
        auto_dtype=dtype == "auto",
        quantize=quantize,
        weight_bits=_weight_bits(quantize, settled_device),
        pooling=pooling or checkpoint.pooling,  # type: ignore[arg-type]  # checked against its values above
        normalize=checkpoint.normalize if normalize is None else normalize,
        max_length=_within("max_length", max_length, checkpoint.max_length, checkpoint.max_positions, "positions"),
        bidirectional=_require_attention(checkpoint) if bidirectional is None else bidirectional,
        bidirectional_reason=reason,
        dims=_within("dims", dims, checkpoint.dims or checkpoint.vector_size, checkpoint.vector_size, "dimensions"),
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name} {value!r} is not known: choose {', '.join(known)}")


def require_whole(name: str, value: int) -> int:
    """Return `value` as Python's int; raises UsageError if it is of a type that is not that of a whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is a {type(value).__name__}: expected a whole number") from None


def _within(name: str, value: int | None, default: int, limit: int | None, unit: str) -> int:
    if value is None:
        return default
    value = require_whole(name, value)
    if value < 1 or (limit is not None and value > limit):
        at_most = "" if limit is None else f", the maximum {limit}, the {unit} of the model"
        raise UsageError(f"{name} {value} is out of range: the minimum is 1{at_most}")
    return value


def _with_eos(checkpoint: Checkpoint, eos: bool) -> Checkpoint:
    """Make EOS occur once or not at all, whether it is appended to the text (LLM2Vec) or is a special token."""
    if checkpoint.append_eos and eos:
        return checkpoint
    return replace(checkpoint, append_eos=False, special_tokens=checkpoint.special_tokens.with_eos(eos))


def _require_attention(checkpoint: Checkpoint) -> bool:
    if checkpoint.bidirectional is None:
        raise ModelError(
            f"{checkpoint.name} defines its attention in custom code, {checkpoint.bidirectional_reason}, which "
            "fastvec does not run: choose what its model card states with --bidirectional or --causal, or set "
            "is_causal in its config.json"
        )
    return checkpoint.bidirectional


def _resolve_device(device: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError(
            "device cuda was requested, but torch finds no GPU: choose cpu, or install a CUDA build of torch"
        )
    return "cuda" if device == "auto" and available else "cpu" if device == "auto" else device


def _weight_bits(quantize: str | None, device: str) -> int:
    """Return the bits of a quantized weight; raises UsageError if this hardware has no fast products in `quantize`."""
    if quantize == "fp8":
        _require_fp8(device)
    if quantize != "int8":
        return 8
    if device != "cpu":
        raise UsageError("quantize int8 is for CPUs and the device is cuda: choose fp8, or device cpu")
    from fastvec.decoders.quantized import int8_bits

    bits = int8_bits()
    if bits is None:
        raise UsageError("quantize int8 needs an x86-64 CPU with AVX2 or VNNI, and torch finds none here: leave it out")
    return bits


def runs_fp8(device: str) -> bool:
    """Return whether `device` has fp8 matrix products."""
    import torch

    return device == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability() >= FP8_CAPABILITY


def _require_fp8(device: str) -> None:
    import torch

    if runs_fp8(device):
        return
    found = "the device is cpu"
    if device == "cuda":
        found = f"{torch.cuda.get_device_name()} has {'.'.join(map(str, torch.cuda.get_device_capability()))}"
    raise UsageError(
        f"quantize fp8 needs an NVIDIA GPU of compute capability 9.0 (Hopper) or newer, and {found}: "
        "leave it out, or choose int8 on a CPU"
    )


def resolve_dtype(device: str) -> str:
    """Return bfloat16 if the hardware is fast in it, else float32 on a CPU and float16 on a GPU (before Ampere)."""
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"
    if not _cpu_multiplies_bfloat16():
        return "float32"
    from fastvec.decoders.cpu_choices import bfloat16_is_faster

    return "bfloat16" if bfloat16_is_faster() else "float32"


def _cpu_multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU has bfloat16 instructions; without them, bfloat16 is emulated and slower than float32."""
    if not cpuinfo.exists():  # not Linux: float32 is always correct, if not always the fastest
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpuinfo.read_text().split())
