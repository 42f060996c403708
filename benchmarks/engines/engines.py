"""The engines that `benchmarks.embed` compares fastvec with: each loads a model folder and returns an encode function.

Loading raises ImportError if the engine is not installed, and Missing if it does not run on this machine.
sentence-transformers and llama.cpp come with the `dev` extra. Install the others yourself: `pip install vllm` (needs a
GPU), and `pip install --no-deps infinity-emb` with `requests` and `posthog`; --no-deps because infinity-emb pins older
versions of numpy and sentence-transformers than those it runs with.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
Load = Callable[[str, str, int], Encode]  # takes a model folder, a dtype and the maximum number of tokens in a text
# texts in a padded batch: sentence-transformers' default on a CPU, enough to fill the device on a GPU
BATCH_SIZES = {"cpu": 32, "cuda": 256}
GGUF_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Missing(Exception):
    """This engine does not run on this machine; the message says why."""


def sentence_transformers(attention: str) -> Load:
    def load(model: str, dtype: str, max_length: int) -> Encode:
        import torch
        from sentence_transformers import SentenceTransformer

        if attention == "flash_attention_2" and device() == "cpu":
            raise Missing("needs a GPU")
        given = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
        encoder = SentenceTransformer(model, model_kwargs=given)
        encoder.max_seq_length = max_length
        batch_size = BATCH_SIZES[encoder.device.type]

        def encode(texts: Sequence[str]) -> Vectors:
            found: Vectors = encoder.encode(list(texts), batch_size=batch_size, show_progress_bar=False)
            return found

        return encode

    return load


def transformers(model: str, dtype: str, max_length: int) -> Encode:
    """Load a straightforward transformers encoder: batches in row order, padded to the longest text."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    place = device()
    decoder: Any = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).to(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Vectors:
        found = []
        for begin in range(0, len(texts), BATCH_SIZES[place]):
            batch = list(texts[begin : begin + BATCH_SIZES[place]])
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            inputs = inputs.to(place)
            mask = inputs["attention_mask"][..., None]
            states = decoder(**inputs, use_cache=False).last_hidden_state
            pooled = (states * mask).sum(dim=1).float() / mask.sum(dim=1)
            found.append(torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy())
        return np.concatenate(found)

    return encode


def infinity(model: str, dtype: str, max_length: int) -> Encode:
    """Load Infinity's engine without its server; it reads the maximum length from the folder, not from `max_length`."""
    os.environ["DO_NOT_TRACK"] = "1"
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    place = device()
    arguments = EngineArgs(
        model_name_or_path=model,
        engine="torch",
        device=place,
        dtype=dtype,
        batch_size=BATCH_SIZES[place],
        bettertransformer=False,  # supports only certain encoder architectures
        model_warmup=False,
    )
    engine = AsyncEmbeddingEngine.from_args(arguments)

    async def embed(texts: Sequence[str]) -> Vectors:
        async with engine:  # starting its threads takes half a second; left running, they would keep the process alive
            vectors, _ = await engine.embed(list(texts))
        return np.stack(vectors)

    return lambda texts: asyncio.run(embed(texts))


def vllm(model: str, dtype: str, max_length: int) -> Encode:
    """Load vLLM's offline engine; it reads pooling and bidirectional attention from the folder."""
    from vllm import LLM

    if device() == "cpu":
        raise Missing("needs a GPU")
    engine = LLM(model, runner="pooling", dtype=dtype, max_model_len=max_length)
    cut = {"truncate_prompt_tokens": max_length}

    def encode(texts: Sequence[str]) -> Vectors:
        found = engine.embed(list(texts), use_tqdm=False, tokenization_kwargs=cut)
        return np.array([one.outputs.embedding for one in found], dtype=np.float32)

    return encode


def llama_cpp(weights: str = "") -> Load:
    """Return a loader of llama.cpp on a CPU; `weights` is a GGUF type, by default that of the dtype.

    `tokenizers` does the tokenizing. A batch has one text: more were no faster on a CPU, and llama.cpp splits a text in
    two when its cache is full.
    """

    def load(model: str, dtype: str, max_length: int) -> Encode:
        import xllamacpp
        from tokenizers import Tokenizer

        from benchmarks.engines.gguf_file import write_gguf

        if device() != "cpu":
            raise Missing("compared on CPUs only")
        kind = weights or GGUF_TYPES[dtype]
        file = Path(model).parent / f"{kind}.gguf"
        if not file.exists():
            write_gguf(Path(model), file, kind)
        tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        tokenizer.enable_truncation(max_length)
        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.embedding, settings.warmup, settings.cache_prompt, settings.verbosity = True, False, False, -1
        settings.n_parallel = 1
        settings.n_ctx = settings.n_batch = settings.n_ubatch = max_length
        server = xllamacpp.Server(settings)

        def encode(texts: Sequence[str]) -> Vectors:
            ids = [one.ids for one in tokenizer.encode_batch(list(texts))]
            answer = server.handle_embeddings({"input": ids})
            if "data" not in answer:
                raise Missing(f"llama.cpp returned no vectors: {answer}")
            return np.array([one["embedding"] for one in answer["data"]], dtype=np.float32)

        return encode

    return load


def device() -> str:
    """Return the device that all contestants use on this machine: cuda or cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


ENGINES: dict[str, Load] = {
    "sentence-transformers": sentence_transformers("sdpa"),
    "sentence-transformers, FlashAttention-2": sentence_transformers("flash_attention_2"),
    "transformers": transformers,
    "infinity": infinity,
    "vLLM": vllm,
    "llama.cpp": llama_cpp(),
    "llama.cpp, Q8_0": llama_cpp("Q8_0"),
}
QUANTIZED = ("llama.cpp, Q8_0",)
