"""An encoder for mteb 2, which runs the tasks of the Massive Text Embedding Benchmark on a checkpoint.

The package mteb is imported when an encoder is made, and not before.

Shapes: n and m texts or vectors, D dimensions of a vector.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fastvec.encoder import ENCODE_ROWS, Encoder
from fastvec.errors import UsageError

FloatArray = npt.NDArray[np.float32]

PLACE = "{instruction}"  # where a template has the task's instruction, as in mteb


class FastvecEncoder:
    """An encoder of mteb (its `EncoderProtocol`): `mteb.evaluate(FastvecEncoder.from_pretrained("model"), tasks)`.

    `mteb_model_meta` is mteb's description of the model. Its revision is a hash of all that determines the scores, so
    that results in mteb's cache belong to this checkpoint, these settings and this template.
    """

    def __init__(self, encoder: Encoder, *, instruction_template: str | None = None) -> None:
        """Take a loaded encoder.

        Args:
            encoder: The encoder.
            instruction_template: The prompt of a model that follows instructions, such as
                "Instruct: {instruction}\\nQuery: ", with mteb's instruction for the task in the place of
                `{instruction}`. It precedes queries, and the texts of tasks that have neither queries nor documents, in
                place of the checkpoint's prompts. Documents keep the checkpoint's prompt.

        Raises:
            UsageError: mteb is not installed, or the template has no place for the instruction.
        """
        if instruction_template is not None and PLACE not in instruction_template:
            raise UsageError(f"instruction_template {instruction_template!r} has no {PLACE}: put it where mteb's goes")
        self.encoder = encoder
        self.instruction_template = instruction_template
        self.mteb_model_meta = _model_meta(encoder, instruction_template)

    @classmethod
    def from_pretrained(
        cls, model: str | Path | None = None, *, instruction_template: str | None = None, **options: Any
    ) -> Self:
        """Load a model as `Encoder.from_pretrained` does, with its `options`; None is the bundled model.

        Raises ModelError if the checkpoint cannot be used, and UsageError as `FastvecEncoder` does.
        """
        _require_mteb()
        return cls(Encoder.from_pretrained(model, **options), instruction_template=instruction_template)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        show_progress_bar: bool | None = None,
        precision: str = "float32",
        **options: Any,
    ) -> FloatArray:
        """Return the vectors [n, D] of all texts of a DataLoader, in order.

        Texts are encoded thousands at a time, so that those of similar length run together, whatever the loader's
        batch size is. Other `options` of mteb, such as `batch_size`, have no effect on vectors and are ignored.

        Args:
            inputs: The DataLoader, whose batches have the texts under `text`.
            task_metadata: The task's metadata, by which the prompt is chosen.
            hf_split: The task's split; not used.
            hf_subset: The task's subset; not used.
            prompt_type: Whether the texts are queries or documents; None if neither.
            show_progress_bar: As in `Encoder.encode`.
            precision: The type of the vectors: float32.

        Raises:
            UsageError: A batch has no texts, or the precision is another one.
            ModelError: A text has no finite vector.
        """
        if precision != "float32":
            raise UsageError(f"precision {precision!r} was asked for, and vectors are float32 here: leave it out")
        instruction, prompt_name = self._prefix(task_metadata, prompt_type)
        texts = _texts(inputs, str(task_metadata.name))
        vectors = [np.empty((0, self.encoder.dims), np.float32)]
        while some := list(islice(texts, ENCODE_ROWS)):
            vectors.append(self.encoder.encode(some, instruction, prompt_name, show_progress_bar=show_progress_bar))
        return np.concatenate(vectors)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return the similarities [n, m] of vectors [n, D] and [m, D] by the checkpoint's function."""
        return torch.from_numpy(self.encoder.similarity(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return the similarities [n] of the vectors [n, D] and [n, D] in the same row, by the same function."""
        a, b = (
            torch.as_tensor(vectors).float().reshape(-1, vectors.shape[-1]) for vectors in (embeddings1, embeddings2)
        )
        function = self.encoder.settings.checkpoint.similarity
        if function == "cosine":
            return F.cosine_similarity(a, b)
        if function == "dot":
            return (a * b).sum(dim=1)
        distances: torch.Tensor = F.pairwise_distance(a, b, p=2 if function == "euclidean" else 1, eps=0)
        return -distances

    def _prefix(self, task: Any, prompt_type: Any) -> tuple[str | None, str | None]:
        """Return the instruction, or else the name of the prompt, that precedes the texts.

        Without a prompt for them, queries and documents have none, and other texts the checkpoint's default prompt, as
        in mteb's own encoder for sentence-transformers.
        """
        from mteb.models.abs_encoder import get_prompt_name

        template = self.instruction_template
        of_documents = prompt_type is not None and prompt_type.value == "document"
        if template is not None and not of_documents and (instruction := _instruction(task)):
            return template.replace(PLACE, instruction), None
        name = get_prompt_name(dict(self.encoder.settings.checkpoint.prompts), task, prompt_type)
        return (None, name) if name is not None or prompt_type is None else ("", None)


def _instruction(task: Any) -> str:
    """Return mteb's instruction for the queries of a task, or for its texts; without one, that of its kind of task."""
    from mteb.abstasks.abstask import get_abstask_prompt

    prompt = task.prompt
    if isinstance(prompt, Mapping):
        return str(prompt.get("query", ""))
    return str(prompt or get_abstask_prompt(task.name))


def _texts(inputs: Iterable[Mapping[str, Any]], task: str) -> Iterator[str]:
    for batch in inputs:
        if "text" not in batch:
            raise UsageError(f"{task} has inputs without a text, only {', '.join(batch)}: choose a task of text alone")
        yield from batch["text"]


def _require_mteb() -> None:
    try:
        import mteb  # noqa: F401
    except ImportError as error:
        raise UsageError("fastvec.mteb needs the package mteb: pip install 'fastvec[mteb]'") from error


def _model_meta(encoder: Encoder, template: str | None) -> Any:
    """Return mteb's ModelMeta of an encoder; what fastvec does not know about the model is None."""
    _require_mteb()
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    settings, checkpoint = encoder.settings, encoder.settings.checkpoint
    from_hub = checkpoint.revision is not None
    dense = sum(layer.out_features * (layer.in_features + layer.bias) for layer in checkpoint.dense)
    return ModelMeta.create_empty(
        overwrites={
            "name": _name(encoder),
            "revision": _revision(encoder, template),
            "n_parameters": encoder.parameters + dense,
            "max_tokens": settings.max_length,
            "embed_dim": encoder.dims,
            "framework": ["PyTorch"],
            "reference": f"https://huggingface.co/{checkpoint.name}" if from_hub else None,
            "similarity_fn_name": ScoringFunction(checkpoint.similarity),
            "use_instructions": template is not None or any(checkpoint.prompts.values()),
        }
    )


def _name(encoder: Encoder) -> str:
    """Return the hub id, or `local/` and the folder's name, because mteb asks for an organization; then adapters."""
    checkpoint = encoder.settings.checkpoint
    name = checkpoint.name
    if checkpoint.revision is None or "/" not in name:
        name = f"{'local' if checkpoint.revision is None else 'hub'}/{Path(name).expanduser().resolve().name}"
    return "+".join([name, *(Path(adapter).name for adapter in checkpoint.added)])


def _revision(encoder: Encoder, template: str | None) -> str:
    """Return a hash of the weights and of every setting that changes a vector or a score."""
    checkpoint = encoder.settings.checkpoint
    values = {
        **encoder.settings.fingerprint(None, None),
        "prompts": dict(checkpoint.prompts),
        "verbatim": checkpoint.verbatim,
        "similarity": checkpoint.similarity,
        "instruction_template": template,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
