"""Embed texts with the bundled model on the device that `auto` chooses: compared with transformers, and as a job."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from fastvec.decoders.from_transformers import load_model
from fastvec.decoders.load import load_dense
from fastvec.decoders.packed_transformers import Decoder
from fastvec.decoders.self_check import TOLERANCE
from fastvec.doctor.report import Outcome, outcome
from fastvec.encoder import Encoder
from fastvec.jobs.embedding import embed
from fastvec.output.verify import verify
from fastvec.settings import resolve_settings
from fastvec.texts.packing import pack_flat
from fastvec_kernels import pool_reference

Step = Callable[[str], None]

# of one token, of a sentence, and longer than what one kernel does alone (128 tokens)
TEXTS = (
    "Rivers",
    "The valley was dry for most of the year.",
    "In spring the water rises, and the lower fields are flooded for a week or two; nobody builds there.",
    "A mill stood at the bridge, and below it a second one. " * 20,
)
TIMED = 32  # copies of them whose rate is measured
ROWS = 200


def check_vectors(step: Step) -> Outcome:
    """Compare the vectors of TEXTS with those of transformers' own forward in float32 on the CPU."""
    step("loading the bundled model")
    encoder = Encoder.from_pretrained()
    settings = encoder.settings
    step(f"embedding on {settings.device}")
    found = encoder.encode(TEXTS)
    many = list(TEXTS) * TIMED
    encoder.encode(many)
    started = time.perf_counter()
    encoder.encode(many)
    rate = len(many) / (time.perf_counter() - started)
    step("comparing with transformers")
    apart = float(np.linalg.norm(found - reference(encoder), axis=1).max())
    allowed = TOLERANCE[getattr(torch, settings.dtype)]
    where = f"{settings.checkpoint.name} in {settings.dtype} on {settings.device}"
    compared = f"at most {apart:.1e} from transformers in float32, allowed {allowed:g}"
    if not apart <= allowed:  # a NaN fails too
        problem = f"wrong vectors: {where} is {apart:.1e} from transformers in float32, allowed {allowed:g}"
        return outcome("", failures=[f"{problem}: do not use this machine, and report this"])
    notes = [f"without kernels: {', '.join(encoder.torch_ops)}"] if encoder.torch_ops else []
    return outcome(f"{where}: {compared}; {rate:,.0f} texts/s", notes=notes)


def reference(encoder: Encoder) -> npt.NDArray[np.float32]:
    """Return the vectors [n, D] of TEXTS by transformers' model, without any code of the fused path or a kernel."""
    settings = encoder.settings
    texts = encoder.tokenizer()(list(TEXTS))
    packed = pack_flat(texts.ids, texts.lengths, texts.spans, device="cpu")
    model = load_model(settings.checkpoint, dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        hidden = Decoder(model, bidirectional=settings.bidirectional)(packed)
        pooled = pool_reference(hidden, packed.spans, settings.pooling)
        vectors = load_dense(settings.checkpoint, device="cpu")(pooled)[:, : settings.dims]
        return (F.normalize(vectors) if settings.normalize else vectors).numpy()


def check_job(step: Step) -> Outcome:
    """Embed a small Parquet file in a temporary folder, and verify the output."""
    with tempfile.TemporaryDirectory(prefix="fastvec-") as folder:
        corpus, output = Path(folder, "corpus.parquet"), Path(folder, "vecs.arrow")
        pq.write_table(pa.table({"text": [f"{number} {TEXTS[number % 3]}" for number in range(ROWS)]}), corpus)
        step("embedding a file")
        report = embed([corpus], output, encoder=resolve_settings(), column="text")
        step("verifying the output")
        verified = verify(output)
        wrong = [f"{check.name}: {check.detail}" for check in verified.checks if not check.passed]
        if report.rows != ROWS or report.errors:
            wrong.append(f"{report.rows} rows and {report.errors} errors, expected {ROWS} and 0")
        if wrong:
            return outcome("", failures=[f"the output is damaged ({'; '.join(wrong)}): check disk and memory"])
        return outcome(f"{ROWS} rows from Parquet to Arrow in {report.seconds:.1f} s; the output is intact")
