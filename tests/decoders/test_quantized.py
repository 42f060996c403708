"""Eight-bit products: what they compute, what they may depend on, and when their vectors are rejected."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import quantized as benchmark
from fastvec.checkpoints.checkpoint import resolve
from fastvec.decoders import quantized
from fastvec.decoders.agreement import Agreement
from fastvec.decoders.from_files import decoder_from_files
from fastvec.decoders.quantized import Fp8Linear, Int8Linear, int8_bits
from fastvec.encoder import Encoder
from fastvec.errors import ModelError, UsageError
from fastvec.jobs.embedding import embed
from fastvec.settings import resolve_settings
from fastvec.texts.packing import pack
from fastvec_kernels import Fp8Rows, quantize_rows_reference
from tests.helpers.corpora import texts, write_parquet
from tests.helpers.outputs import read_output
from tests.helpers.tiny import SENTENCES, save_decoder

BITS = int8_bits()
needs_int8 = pytest.mark.skipif(BITS is None, reason="needs an x86-64 CPU with AVX2 or VNNI")
TEXTS = [f"{one} {two}" for one in SENTENCES for two in SENTENCES]


def in_int8(x: torch.Tensor, weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The definition in float64: an exact product of integers, multiplied by the scales."""
    x, weight = x.double(), weight.double()
    x_scale = x.abs().amax(dim=1, keepdim=True) / 127
    w_scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    product: torch.Tensor = (x / x_scale).round() @ (weight / w_scale).round().T
    scaled: torch.Tensor = product * x_scale * w_scale.T
    return scaled


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 700])  # 700 is more than one step handles
def test_an_int8_product_is_the_definition(rows: int, dtype: torch.dtype) -> None:
    assert BITS is not None
    x = without_ties(torch.randn(rows, 96).to(dtype), 127)
    weight = without_ties((torch.randn(64, 96) / 8).to(dtype), 2 ** (BITS - 1) - 1)
    bias = torch.randn(64).to(dtype)
    linear = Int8Linear(weight, bias, BITS)
    # integer sums are exact: rounding comes from two float32 scales, two float32 products by them, and the result
    relative = 4 * 2**-23 + (2**-8 if dtype == torch.bfloat16 else 0)
    torch.testing.assert_close(linear.product(x).double(), in_int8(x, weight, BITS), rtol=relative, atol=0)
    assert linear(x).dtype == dtype
    torch.testing.assert_close(linear(x), linear.product(x) + bias)


def without_ties(x: torch.Tensor, largest: int) -> torch.Tensor:
    """Zero the entries of `x` so close to halfway between two integers that float32 may round them either way.

    A quotient of up to 127, computed from a float32 scale and its inverse, is off by at most
    127 · 3 · 2⁻²⁴ = 2.3e-5.
    """
    quotients = x.double() / (x.double().abs().amax(dim=1, keepdim=True) / largest)
    near = (quotients.frac().abs() - 0.5).abs() < 1e-4
    return x.masked_fill(near, 0)


@needs_int8
def test_the_largest_bytes_are_summed_without_an_error() -> None:
    assert BITS is not None
    weight = torch.full((32, 1024), 2.0 ** (BITS - 1) - 1)
    weight[::2] *= -1
    x = torch.full((8, 1024), 127.0)
    assert torch.equal(Int8Linear(weight, None, BITS).product(x), x @ weight.T)


@needs_int8
def test_a_row_does_not_depend_on_its_neighbours_and_zeros_stay() -> None:
    assert BITS is not None
    linear = Int8Linear(torch.randn(16, 32), None, BITS)
    x = torch.randn(5, 32)
    alone = linear.product(x[2:3])
    x[1], x[3] = 0, x[3] * 1e4
    product = linear.product(x)
    assert torch.equal(product[2], alone[0])
    assert torch.equal(product[1], torch.zeros(16))


def scaled_mm(
    a: torch.Tensor, b: torch.Tensor, *, scale_a: torch.Tensor, scale_b: torch.Tensor, **_: object
) -> torch.Tensor:
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    return (a.float() @ b.float() * scale_a * scale_b).bfloat16()


def test_fp8_multiplies_what_was_quantised_and_scales_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    x, weight, bias = torch.randn(9, 64), torch.randn(32, 64), torch.randn(32)
    (rows, row_scales), (columns, column_scales) = quantize_rows_reference(x), quantize_rows_reference(weight)
    expected = (rows.float() * row_scales[:, None]) @ (columns.float() * column_scales[:, None]).T + bias
    found = Fp8Linear(weight, bias)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-5)


def test_only_attentions_output_is_quantized_in_a_pass_of_its_own(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms and the gated unit quantize what they return; the scale of a row of attention's output spans all heads."""
    decoder = decoder_from_files(
        resolve(tiny_llama), dtype=torch.float32, device="cpu", bidirectional=True, positions=64
    )
    assert decoder is not None
    quantized_shapes = []

    def recorded(x: torch.Tensor) -> Fp8Rows:
        quantized_shapes.append(tuple(x.shape))
        return quantize_rows_reference(x)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    batch = pack([np.arange(5), np.arange(9)])
    with torch.inference_mode():
        fused = decoder.fuse()
        in_fp8 = fused.with_linears(Fp8Linear)
        monkeypatch.setattr(quantized, "quantize_rows", recorded)
        found, expected = in_fp8.states(batch), fused.states(batch)
    assert quantized_shapes == [(14, 64)] * 2  # one for each layer
    cosines = torch.nn.functional.cosine_similarity(found, expected)
    assert cosines.min() > 0.98


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs a GPU that has fp8"
)
def test_fp8_on_a_gpu_is_near_the_product_in_floats() -> None:
    x, weight = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in ((300, 256), (128, 256)))
    found, expected = Fp8Linear(weight, None).product(x).float(), (x.float() @ weight.float().T)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.06 * expected.norm()


def test_widths_that_fp8_does_not_take_are_refused() -> None:
    with pytest.raises(ModelError, match=r"fp8 needs widths divisible by 16, and this model has .* \(32, 40\)"):
        Fp8Linear(torch.zeros(32, 40), None)


def test_agreement_counts_what_stays_near() -> None:
    vectors = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    same = Agreement.of(vectors, vectors * 3)
    assert (same.texts, same.overlap) == (200, 1.0)
    assert same.cosine == pytest.approx(1)
    same.require("int8", "float32")
    turned = vectors.copy()
    turned[:10] = turned[10:20]
    assert Agreement.of(vectors, turned).cosine < 0.5
    with pytest.raises(
        ModelError, match=r"int8 changes this model's vectors too much against float32: 1st percentile of the cosine "
    ):
        Agreement.of(vectors, turned).require("int8", "float32")


def test_neighbours_that_change_are_refused_where_cosines_hardly_move() -> None:
    random = np.random.default_rng(0)
    crowd = np.ones((150, 64)) + 1e-3 * random.standard_normal((150, 64))
    moved = crowd + 1e-3 * random.standard_normal((150, 64))
    agreement = Agreement.of(crowd.astype(np.float32), moved.astype(np.float32))
    assert agreement.cosine > 0.999
    assert agreement.overlap is not None
    assert agreement.overlap < 0.8
    with pytest.raises(ModelError, match=r"against bfloat16: .* of the nearest 10 unchanged on 150 texts"):
        agreement.require("fp8", "bfloat16")


def test_few_texts_are_compared_by_cosine_alone_and_nan_is_left_out() -> None:
    vectors = np.eye(20, dtype=np.float32)
    broken = vectors.copy()
    broken[3] = np.nan
    agreement = Agreement.of(vectors, broken)
    assert (agreement.texts, agreement.overlap) == (19, None)
    assert str(agreement) == "1st percentile of the cosine 1.0000 on 19 texts"
    assert Agreement.of(vectors[:1], broken[3:4]) == Agreement(texts=0, cosine=1.0, overlap=None)


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make int8 products badly wrong."""
    product = Int8Linear.product
    monkeypatch.setattr(Int8Linear, "product", lambda self, x: -10 * product(self, x))


@needs_int8
def test_vectors_in_int8_are_near_those_in_floats_and_are_told_apart(tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "corpus.parquet", texts(list(TEXTS)))
    output = tmp_path / "v.arrow"
    settings = resolve_settings(device="cpu", dtype="float32", quantize="int8")
    report = embed([corpus], output, encoder=settings)
    assert report.agreement is not None
    assert report.agreement["cosine"] > 0.99
    table = read_output(output)
    assert table.schema.metadata[b"fastvec.dtype"] == f"float32, products in int8 with weights of {BITS} bits".encode()
    found = np.stack(table["embedding"].to_numpy())
    floats = Encoder.from_pretrained(device="cpu", dtype="float32").encode(TEXTS)
    assert 1e-4 < np.abs(found - floats).max() < 0.1
    with pytest.raises(Exception, match="dtype"):
        embed([corpus], output, encoder=resolve_settings(device="cpu", dtype="float32"))


@needs_int8
def test_texts_that_come_one_by_one_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvec.decoders.agreement.LEAST_TEXTS", 12)
    encoder = Encoder.from_pretrained(device="cpu", dtype="float32", quantize="int8")
    floats = Encoder.from_pretrained(device="cpu", dtype="float32")
    for count, text in enumerate(TEXTS[:12], start=1):
        encoder.encode([text])
        assert encoder.agreement is not None
        assert encoder.agreement.texts == count
        assert (encoder.agreement.overlap is None) == (count < 12)
    spoil(monkeypatch)  # vectors are no longer compared, so the error goes unnoticed
    assert (encoder.encode(TEXTS[12:13]) * floats.encode(TEXTS[12:13])).sum() < 0.99


@needs_int8
def test_the_second_text_is_compared_as_the_first_was(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.from_pretrained(device="cpu", dtype="float32", quantize="int8")
    encoder.encode(TEXTS[:1])
    spoil(monkeypatch)
    with pytest.raises(ModelError, match="int8 changes this model's vectors too much"):
        encoder.encode(TEXTS[1:2])


@needs_int8
def test_a_model_that_int8_turns_too_far_is_refused_before_a_row_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    corpus, output = write_parquet(tmp_path / "corpus.parquet", texts(list(TEXTS))), tmp_path / "v.arrow"
    with pytest.raises(ModelError, match="int8 changes this model's vectors too much"):
        embed([corpus], output, encoder=resolve_settings(device="cpu", quantize="int8"))
    assert not output.exists()


@needs_int8
@pytest.mark.parametrize(("seconds", "warned"), [(0.2, True), (0.05, False)])
def test_a_cpu_on_which_int8_is_slower_is_told_both_rates(
    seconds: float, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder.from_pretrained(device="cpu", dtype="float32", quantize="int8")
    monkeypatch.setattr("fastvec.decoders.agreement.LEAST_TEXTS", 20)
    now = iter([0.0, seconds, 1.0, 1.1])  # before and after each of the two forwards
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    encoder.encode(TEXTS[:20])
    assert encoder.agreement is not None
    assert encoder.agreement.speed == pytest.approx(0.1 / seconds)
    message = "int8 is slower than float32 on this CPU: 100 texts/s against 200; leave --quantize out"
    assert (message in caplog.messages) == warned


@needs_int8
def test_a_decoder_that_runs_through_transformers_has_no_int8(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(UsageError, match=r"quantize int8 needs a Llama-style decoder, and .* runs through"):
        Encoder.from_pretrained(folder, device="cpu", quantize="int8")


@needs_int8
def test_a_text_that_overflows_is_computed_in_float32_without_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.from_pretrained(device="cpu", dtype="float32", quantize="int8")
    floats = Encoder.from_pretrained(device="cpu", dtype="float32").encode(TEXTS[:1])
    encoder.encode(TEXTS)
    monkeypatch.setattr(Int8Linear, "product", lambda self, x: torch.full((len(x), len(self._scales)), torch.nan))
    np.testing.assert_allclose(encoder.encode(TEXTS[:1]), floats, atol=1e-6)


def test_without_a_product_of_bytes_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "int8_bits", lambda: None)
    with pytest.raises(UsageError, match="quantize int8 needs an x86-64 CPU with AVX2 or VNNI"):
        resolve_settings(device="cpu", quantize="int8")


@needs_int8
@pytest.mark.parametrize("refused", [False, True])
def test_the_benchmark_measures_also_what_is_refused(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused:
        spoil(monkeypatch)
    corpus = write_parquet(tmp_path / "corpus.parquet", texts(list(TEXTS)))
    arguments = [str(corpus), "--mix", "wiki", "--rows", "5", "--rounds", "1"]
    done = CliRunner().invoke(benchmark.main, arguments, catch_exceptions=False)
    speed, agreement, *refusal = done.stdout.splitlines()
    assert "products in int8" in speed
    assert agreement.endswith("on 5 texts")
    assert bool(refusal) == refused
