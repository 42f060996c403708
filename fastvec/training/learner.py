"""Builds the parts of an adaptation from its plan: model with adapter, task, data, Trainer and evaluation."""

import logging
import re
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from transformers.pytorch_utils import Conv1D

from fastvec.decoders.from_transformers import load_model
from fastvec.decoders.kernel_check import call_kernels, kernel_check
from fastvec.decoders.load import load_dense
from fastvec.decoders.packed_transformers import Decoder
from fastvec.decoders.self_check import self_check
from fastvec.distributed.sharding import Sharding, load_trained_weights, trained_weights
from fastvec.errors import ModelError, UsageError
from fastvec.texts.from_transformers import tokenizer_from_transformers
from fastvec.texts.tokenizer import TextRecipe, TextTokenizer, require_embeddings
from fastvec.training.evaluation import EvaluationPass, similarity
from fastvec.training.objectives.contrastive import ContrastTask
from fastvec.training.objectives.distillation import FIT_TEXTS, DistilTask, by_topic, fitted_dense
from fastvec.training.objectives.language_head import LanguageHead
from fastvec.training.objectives.losses import MaskRule, mask_tokens
from fastvec.training.objectives.mntp import TokenTask
from fastvec.training.objectives.noise import control_noise
from fastvec.training.objectives.readout import Readout, run_kernels
from fastvec.training.plan import AdaptPlan
from fastvec.training.stream import ExampleStream, shuffled
from fastvec.training.trainer import Batches, PackedTrainer, training_arguments

logger = logging.getLogger(__name__)

DENSE = "fastvec_dense"  # the name of the trained layer after the pooling in the model
HELD_OUT_EXAMPLES = 256
# a token that a vocabulary reserves for later use: <|reserved_special_token_0|>, <unused0>, <extra_id_0>, [unused1]
RESERVED = re.compile(r"[<\[].*(reserved|unused|extra|placeholder).*[>\]]")


class Learner:
    """A plan, ready to run. `trainer` trains `model`: a PeftModel, or the decoder itself in full fine-tuning."""

    def __init__(self, plan: AdaptPlan, folder: Path) -> None:
        """Load the model and set up the data; checkpoints go into `folder`.

        Raises ModelError if the checkpoint cannot be trained this way, UsageError if `max_length` exceeds the model's
        positions, or if the objective needs a mask token and the tokenizer has none.
        """
        recipe, settings = plan.recipe, plan.settings
        self.plan = plan
        self.arguments = training_arguments(plan, folder)
        self.device = self.arguments.device
        self.tokenizer = tokenizer_from_transformers(settings.checkpoint)
        self._sharding = Sharding(self.device, plan.ranks) if plan.fsdp else None
        loaded, decoder, self.model = self._load("cpu" if plan.fsdp else self.device)
        self._embeddings = len(decoder.embeddings)
        require_embeddings(self.tokenizer, self._embeddings, settings.checkpoint.name)
        if self._sharding is not None:
            self._sharding.split_model(self.model)
        decoder.model = self.model  # a split model runs only as a whole
        with torch.no_grad(), kernel_check():
            self_check(decoder)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
                run = partial(run_kernels, decoder, settings.pooling)
                call_kernels(run, decoder.vocabulary, settings.max_length, self.device)
        for name in ("gradient_checkpointing", "activation_checkpointing"):  # renamed in transformers 5
            setattr(self.arguments, name, _saves_activations(self.device, loaded.base_model))
        self.noise = control_noise(self.model)
        self.readout = Readout(settings.pooling, self._dense())
        _log_what_is_trained(self.model, plan)
        self.task = self._task(loaded)
        self.streams = self._streams(self.task)
        self.batches = Batches(
            self.streams,
            size=recipe.batch_size,
            rank=self.arguments.process_index,
            ranks=self.arguments.world_size,
            seed=recipe.seed,
        )
        self.trainer = PackedTrainer(
            model=self.model,
            args=self.arguments,
            task=self.task,
            batches=self.batches,
            noise=self.noise,
            attention_dropout=recipe.attention_dropout,
            split=plan.fsdp,
        )
        self.trainer.remove_callback(PrinterCallback)
        # created before batches are read ahead: creating it modifies the tokenizer, which another thread then uses
        # of the scored pairs, neither text is a query
        self._pairs_tokenizer = self._texts(*((None, None) if recipe.objective == "contrastive" else plan.prompts[0]))
        self._held_out: list[Any] | None = None

    def _load(self, device: torch.device | str) -> tuple[PreTrainedModel, Decoder, Any]:
        """Return the loaded model, with its LM head for mntp; its decoder; and what is trained, which has the adapter.

        Raises what the constructor raises.
        """
        recipe, settings = self.plan.recipe, self.plan.settings
        # full fine-tuning keeps the weights in float32: bfloat16 would round away the update of one step
        stored = torch.float32 if recipe.full else getattr(torch, settings.dtype)
        loaded = load_model(settings.checkpoint, dtype=stored, device=device, headed=recipe.objective == "mntp")
        decoder = Decoder(loaded.base_model, bidirectional=settings.bidirectional)  # type: ignore[arg-type]
        if decoder.longest is not None and settings.max_length > decoder.longest:
            raise UsageError(
                f"--max-length {settings.max_length}: {settings.checkpoint.name} takes at most {decoder.longest}"
            )
        trained = decoder.model.requires_grad_(True) if recipe.full else _with_lora(decoder.model, self.plan)
        return loaded, decoder, trained

    def measure(self) -> dict[str, float]:
        """Return the held-out measures, and Spearman's correlation on the scored pairs if there are any.

        Every rank must call this if the model is split.
        """
        plan = self.plan
        if self._held_out is None:
            share = -(-HELD_OUT_EXAMPLES // len(self.streams))
            self._held_out = [example for stream in self.streams for example in stream.held_out(share)]
        self.model.eval()
        still = self._look()
        noisy = replace(still, noise=self.noise, attention_dropout=plan.recipe.attention_dropout)
        measured = {}
        if self._held_out:
            # without noise, SimCSE's two encodings of a text would be equal
            look = noisy if plan.recipe.objective == "simcse" else still
            found = self.task.evaluate(self._held_out, look, size=plan.global_batch_size)
            measured = {f"held_out_{name}": value for name, value in found.items()}
        if plan.pairs is not None:
            measured["spearman"] = similarity(plan.pairs, self._pairs_tokenizer, self.readout, still)
        return measured

    def take_trained(self) -> tuple[Any, nn.Linear | None]:
        """Return the trained model, and the Dense layer, if any, detached from it, so that each can be saved.

        Every rank must call this if the model is split. Rank 0 then gets a whole model on the CPU, others nothing new.
        """
        dense = self.readout.dense
        if self._sharding is None:
            if dense is not None:
                delattr(self.model, DENSE)
            return self.model, dense
        weights = trained_weights(self.model)
        if self.plan.rank != 0:
            return self.model, dense
        _, _, model = self._load("cpu")
        if dense is not None:
            dense = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias is not None)
            model.add_module(DENSE, dense)
        load_trained_weights(model, weights)
        if dense is not None:
            delattr(model, DENSE)
        return model, dense

    def _look(self) -> EvaluationPass:
        return EvaluationPass(model=self.model, device=self.device, narrow=self.plan.settings.dtype == "bfloat16")

    def _streams(self, task: Any) -> tuple[ExampleStream[Any], ...]:
        recipe = self.plan.recipe
        arrange: Any = by_topic if recipe.objective == "distil" else shuffled
        return tuple(
            ExampleStream(corpus, task.examples_of, seed=recipe.seed, hold_out=recipe.hold_out, arrange=arrange)
            for corpus in self.plan.corpora
        )

    def _task(self, loaded: PreTrainedModel) -> Any:
        if self.plan.recipe.objective == "mntp":
            return self._token_task(loaded)
        return self._contrast_task() if self.plan.vector_width is None else self._distil_task(self.readout)

    def _dense(self) -> nn.Linear | None:
        """Return the layer trained after the pooling: the checkpoint's Dense layer, or one to the teacher's width.

        It becomes a module of the model, so that the optimizer updates it and its gradients are averaged over ranks.
        None if the model has no Dense layer and needs none.
        """
        settings, width = self.plan.settings, self.plan.vector_width
        if settings.checkpoint.dense:
            dense: nn.Linear = load_dense(settings.checkpoint, device=self.device)[0].requires_grad_(True)  # type: ignore[assignment]
        elif width is None or width == settings.checkpoint.hidden_size:
            return None
        else:
            bare = Readout(settings.pooling)
            (stream,) = self._streams(self._distil_task(bare))
            most = min(FIT_TEXTS, stream.corpus.rows)
            dense = fitted_dense(list(islice(stream.examples(), most)), bare, self._look())
        self.model.add_module(DENSE, dense)
        if self._sharding is not None:
            self._sharding.split(dense)
        return dense

    def _texts(self, instruction: str | None, prompt_name: str | None) -> TextTokenizer:
        settings = self.plan.settings
        return settings.text_tokenizer(self.tokenizer, instruction, prompt_name, embeddings=self._embeddings)

    def _distil_task(self, readout: Readout) -> DistilTask:
        recipe, settings, width = self.plan.recipe, self.plan.settings, self.plan.vector_width
        return DistilTask(
            self._texts(*self.plan.prompts[0]),
            readout,
            vectors=recipe.vectors,
            width=width or settings.checkpoint.vector_size,
            at_once=recipe.grad_cache,
            file_of=lambda row: next(self.plan.corpora[0].locate([row]))[0],
        )

    def _token_task(self, causal: PreTrainedModel) -> TokenTask:
        recipe = self.plan.recipe
        rule = MaskRule(
            mask_id=mask_id(self.tokenizer, recipe.mask_token, self._embeddings),
            vocabulary=min(len(self.tokenizer), int(causal.config.vocab_size)),
            special_ids=frozenset(self.tokenizer.all_special_ids),
            probability=recipe.mask_probability,
            style=recipe.mask_style,
        )
        return TokenTask(
            TextTokenizer(self.tokenizer, TextRecipe(max_length=1 << 30), embeddings=self._embeddings),
            LanguageHead(causal, self.device),
            lambda ids, random: mask_tokens(ids, rule, random),
            max_length=self.plan.settings.max_length,
            at_once=recipe.grad_cache,
        )

    def _contrast_task(self) -> ContrastTask:
        recipe = self.plan.recipe
        pairs = recipe.objective == "contrastive"
        return ContrastTask(
            *(self._texts(*prompt) for prompt in self.plan.prompts),
            positive=recipe.positive if pairs else None,
            negatives=recipe.negatives,
            readout=self.readout,
            temperature=recipe.temperature,
            at_once=recipe.grad_cache,
        )


def mask_id(tokenizer: PreTrainedTokenizerBase, given: str | None, embeddings: int) -> int:
    """Return the id of the mask token: `given`, or else the tokenizer's own, `_`, unk, or the last reserved token.

    Only ids below `embeddings` qualify. Raises UsageError if there is none.
    """
    backend, unknown = tokenizer.backend_tokenizer, tokenizer.unk_token_id
    if given is not None:
        found: int | None = backend.token_to_id(given)
        if found is None or found == unknown or found >= embeddings:
            what = f"{given!r} is not one of its tokens, or has no embedding"
            raise UsageError(f"--mask-token cannot be used: {what}; give a token that is rare in texts")
        return found
    reserved = [index for token, index in backend.get_vocab().items() if RESERVED.fullmatch(token)]
    underscore = backend.token_to_id("_")
    candidates = {
        "the tokenizer's mask token": tokenizer.mask_token_id,
        "an underscore": None if underscore == unknown else underscore,
        "the tokenizer's unknown token": unknown,
        "the tokenizer's last reserved token": max((index for index in reserved if index < embeddings), default=None),
    }
    for what, index in candidates.items():
        if index is not None and index < embeddings:
            logger.info("masked tokens are replaced by %r, %s", backend.id_to_token(index), what)
            return int(index)
    raise UsageError(
        "the tokenizer has no mask token, no '_', no unknown and no reserved token: give one that is rare in "
        "texts with --mask-token"
    )


def lora_targets(model: nn.Module) -> list[str]:
    """Return the names of all linear maps in the decoder's layers: q, k, v, o, gate, up and down in Llama.

    In a mixture of experts, return only those of attention: each expert sees only some of the tokens, and the weights
    of all experts are fused.
    """
    maps = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    inside = [name.split(".") for name in maps if any(part.isdigit() for part in name.split(".")[:-1])]
    if any("expert" in name for name, _ in model.named_parameters()):
        inside = [parts for parts in inside if any("att" in part for part in parts[:-1])]
        # peft recognizes experts by these names, and would mistake an attention gate for an expert's
        inside = [parts for parts in inside if parts[-1] not in ("gate_proj", "up_proj", "down_proj")]
    # a number alone is ambiguous, so its parent's name precedes it; routers select experts, Gemma 3n clips its coefs
    names = {".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1] for parts in inside}
    return sorted(name for name in names if "router" not in name and "coefs" not in name)


def _with_lora(model: PreTrainedModel, plan: AdaptPlan) -> PeftModel:
    recipe = plan.recipe
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=lora_targets(model),
    )
    try:
        tuned = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"{plan.settings.checkpoint.name} cannot get a LoRA adapter: {error}") from None
    tuned.peft_config["default"].base_model_name_or_path = None  # otherwise peft compares each checkpoint with the hub
    return tuned


def _saves_activations(device: torch.device, model: Any) -> bool:
    """Whether layers run again in the backward. A CPU has enough memory, and computation would grow by a third."""
    return device.type != "cpu" and bool(model.supports_gradient_checkpointing)


def _log_what_is_trained(model: nn.Module, plan: AdaptPlan) -> None:
    weights = list(model.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    direction = "bidirectional" if plan.settings.bidirectional else "causal"
    logger.info(
        "%s has %s attention; %s of %s weights are trained",
        plan.settings.checkpoint.name,
        direction,
        f"{trained:,}",
        f"{sum(weight.numel() for weight in weights):,}",
    )
