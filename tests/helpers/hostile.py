"""Model folders that are damaged or made to do harm, loaded in one process with little memory.

`python -m tests.helpers.hostile FOLDER CASES_SHARE SWEEP_SHARE` loads changed copies of FOLDER, and encodes texts with
each. Its lines are JSON: the change, `vectors` or the name of an exception, and the vectors or the message. The changes
are those of CASES, then the sweep: each value of the folder's JSON files is replaced by each of VALUES. A random share
of both is run.
"""

import base64
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fastvec import Encoder
from fastvec.errors import FastvecError
from tests.helpers.checkpoints import edit_json
from tests.helpers.tiny import SENTENCES

Change = Callable[[Path], object]
SHARE_OF_SWEEP = 0.15
MEMORY = 1 << 30  # bytes of address space beyond those of the process before the first case
SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
# keys that run code, choose other code or build something large in some loader, whether or not the file has them
ADDED = (
    "auto_map",
    "_attn_implementation",
    "_attn_implementation_internal",
    "attn_implementation",
    "quantization_config",
    "custom_pipelines",
    "text_config",
    "rope_scaling",
    "layer_types",
    "sliding_window",
    "num_labels",
    "id2label",
    "use_kernels",
    "dtype",
    "chat_template",
    "additional_special_tokens",
    "extra_special_tokens",
    "added_tokens_decoder",
    "model_max_length",
    "tokenizer_class",
    "tokenizer_file",
    "unk_token",
    "pad_token",
    "add_bos_token",
    "pooling_mode",
    "module_input_name",
    "use_residual",
)


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 10**9, 2**63, 1e308, float("nan"), float("inf"), -0.5),
    *("", "os.system", "kernels-community/evil", "x" * 5000, "\ud800"),
    *([], [1], ["a"], [[]], {"a": 1}, {"trust_remote_code": True}, nested(200)),
]


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def settings(name: str, **changes: Any) -> Change:
    return lambda folder: edit_json(folder / name, **changes)


def part(name: str, **changes: Any) -> Change:
    """Change the object `name` in tokenizer.json."""
    return lambda folder: edit_json(
        folder / "tokenizer.json", **{name: json.loads((folder / "tokenizer.json").read_text())[name] | changes}
    )


def sparse(name: str, size: int, begin: bytes = b"") -> Change:
    """Make a file of `size` bytes that takes no room on the disk: `begin`, and then zeros."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(begin)
        os.truncate(folder / name, size)

    return change


def safetensors(header: str | bytes, data: int = 64, *, length: int | None = None) -> Change:
    """Write a safetensors file with this header, which states another `length` than it has, if given."""
    encoded = header if isinstance(header, bytes) else header.encode()
    stated = struct.pack("<Q", len(encoded) if length is None else length)
    return text("model.safetensors", stated + encoded + bytes(data))


def tensor(dtype: str = "F32", shape: str = "[4]", offsets: str = "[0,16]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def index(**shards: Any) -> Change:
    """List the weights in an index that puts tensors into these files."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))

    return change


def special_file(name: str, kind: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        if kind == "fifo":
            os.mkfifo(folder / name)
        elif kind == "device":
            (folder / name).symlink_to("/dev/zero")
        else:
            (folder / name).mkdir()

    return change


REPEATED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BACKTRACKING = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
PADDED = {
    "strategy": {"Fixed": 10**9},
    "direction": "Right",
    "pad_to_multiple_of": None,
    **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
}
DAMAGED = "is an incomplete or damaged safetensors file"
# each case: the change, and what the message of the ModelError says; None if the vectors stay the same
CASES: dict[str, tuple[Change, str | None]] = {
    "an empty file of weights": (text("model.safetensors", b""), DAMAGED),
    "a header of 2^63 bytes": (safetensors("{}", length=2**63), DAMAGED),
    "a header of 100 MB": (sparse("model.safetensors", 101 << 20, struct.pack("<Q", 100 << 20)), DAMAGED),
    "a header longer than its file": (safetensors("{}", length=10_000), DAMAGED),
    "a header that is no JSON": (safetensors("{" * 8), DAMAGED),
    "a header that is nested": (safetensors('{"a":' * 100_000), DAMAGED),
    "a header that is a zip archive": (text("model.safetensors", b"PK\3\4" + bytes(100)), DAMAGED),
    "offsets beyond the file": (safetensors(f'{{"a":{tensor(offsets="[0,4096]")}}}'), DAMAGED),
    "offsets of another size than the shape": (safetensors(f'{{"a":{tensor(offsets="[0,64]")}}}'), DAMAGED),
    "offsets that end before they begin": (safetensors(f'{{"a":{tensor(offsets="[64,0]")}}}'), DAMAGED),
    "tensors that overlap": (safetensors(f'{{"a":{tensor()},"b":{tensor(offsets="[8,24]")}}}', 24), DAMAGED),
    "a tensor of negative shape": (safetensors(f'{{"a":{tensor(shape="[-4]")}}}'), DAMAGED),
    "a shape whose product overflows": (safetensors(f'{{"a":{tensor(shape=f"[{2**62},{2**62}]")}}}'), DAMAGED),
    "an unknown dtype": (safetensors(f'{{"a":{tensor(dtype="PICKLE")}}}'), DAMAGED),
    "a name twice": (safetensors(f'{{"a":{tensor()},"a":{tensor()}}}', 16), "but the weights have 1 tensors"),
    "an index out of the folder": (index(a="../one.safetensors"), "does not list the weight files"),
    "an index with an absolute path": (index(a="/etc/passwd"), "does not list the weight files"),
    "an index of objects": (index(a={"one": "safetensors"}), "does not list the weight files"),
    "an index of nothing": (index(), "does not list the weight files"),
    "an index of a missing shard": (index(a="one.safetensors", b="two.safetensors"), "two.safetensors is missing"),
    "an index of a shard several times": (index(a="one.safetensors", b="one.safetensors"), None),
    "a config of 33 MB": (sparse("config.json", 33 << 20), "at most 33,554,432 are expected"),
    "a config nested 100,000 times": (text("config.json", '{"a":' * 100_000), "is not valid JSON"),
    "a config with a BOM": (text("config.json", b"\xef\xbb\xbf{}"), "is not valid JSON"),
    "a config of invalid UTF-8": (text("config.json", b'{"model_type": "\xff"}'), "is not valid JSON"),
    "a config with a number of 5,000 digits": (text("config.json", f'{{"a": {"1" * 5000}}}'), "is not valid JSON"),
    "a config with half a character": (settings("config.json", a="\ud800"), "is not valid JSON"),
    "a config that is a list": (text("config.json", "[]"), "expected an object"),
    "a key twice": (text("config.json", '{"model_type": "llama", "model_type": "evil"}'), "'evil' is not supported"),
    "a vocabulary of 10^12": (settings("config.json", vocab_size=10**12), "has vocab_size 1e.12, but the weights"),
    "10^9 layers": (settings("config.json", num_hidden_layers=10**9), "num_hidden_layers 1e.09, but the weights"),
    "no layers": (settings("config.json", num_hidden_layers=0), "has num_hidden_layers 0"),
    "no heads": (settings("config.json", num_attention_heads=0), "config.json"),
    "a width of 2^40": (settings("config.json", hidden_size=2**40), "has hidden_size"),
    "sizes that are large only together": (
        settings("config.json", vocab_size=400_000, intermediate_size=400_000, pretraining_tp=2),
        "parameters, but the weights have",
    ),
    "10^9 labels": (settings("config.json", num_labels=10**9), "has num_labels 1e.09"),
    "a quantizer of its own": (
        settings("config.json", quantization_config={"quant_method": "evil", "modules_to_not_convert": []}),
        "has quantized weights",
    ),
    "attention from the hub": (settings("config.json", attn_implementation="kernels-community/evil"), None),
    "attention of its own": (settings("config.json", _attn_implementation_internal="org/evil:run"), None),
    "pipelines of its own": (settings("config.json", custom_pipelines={"x": {"impl": "modeling_evil.Evil"}}), None),
    "generation of its own": (
        text("generation_config.json", '{"auto_map": {"a": "b.C"}, "custom_generate": "x"}'),
        None,
    ),
    "a processor of its own": (
        text("processor_config.json", '{"auto_map": {"AutoProcessor": "modeling_evil.E"}}'),
        None,
    ),
    "sequences of 10^9 tokens": (settings("sentence_bert_config.json", max_seq_length=10**9), None),
    "10^9 dimensions of a Dense layer": (
        settings("2_Dense/config.json", out_features=10**9),
        "does not fit its config",
    ),
    "a module's path of 5,000 characters": (
        text("modules.json", json.dumps([{"type": "sentence_transformers.models.Transformer", "path": "x" * 5000}])),
        "expected a subfolder of it",
    ),
    "a pattern that backtracks": (settings("tokenizer.json", pre_tokenizer=BACKTRACKING), "takes too many steps"),
    "a normalizer that doubles a text 24 times": (
        settings("tokenizer.json", normalizer={"type": "Sequence", "normalizers": [REPEATED] * 24}),
        r"makes texts 1.7e\+07 times as long",
    ),
    "a map of characters of 4 GB": (
        settings(
            "tokenizer.json",
            normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 5).decode()},
        ),
        "damaged precompiled_charsmap",
    ),
    "a prefix that no word can have": (
        part("model", continuing_subword_prefix="os.system"),
        "the (model's )?tokenizer",
    ),
    "texts padded to 10^9 tokens": (settings("tokenizer.json", padding=PADDED), None),
    "a token with a large number": (part("model", vocab={"a": 2**40}), "cannot be loaded"),
    "a tokenizer nested 100,000 times": (text("tokenizer.json", "[" * 100_000), "cannot be loaded"),
    "a tokenizer of 257 MB": (sparse("tokenizer.json", 257 << 20), "at most 268,435,456 are expected"),
}
CASES |= {
    f"a {kind} for {name}": (special_file(name, kind), "has no|is missing")
    for kind in ("fifo", "device", "folder")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")
}
CASES |= {
    f"a fifo for {name}": (special_file(name, "fifo"), None)
    for name in ("tokenizer_config.json", "generation_config.json")
}


def sweep(folder: Path) -> Iterator[tuple[str, Change]]:
    chosen = random.Random(0)
    for name in SETTINGS:
        content = json.loads((folder / name).read_text())
        for place, part in enumerate(content) if isinstance(content, list) else [(None, content)]:
            for key in dict.fromkeys([*part, *ADDED] if place is None else part):
                for value in VALUES:
                    if chosen.random() < SHARE_OF_SWEEP:
                        changed = part | {key: value}
                        whole = [changed if at == place else one for at, one in enumerate(content)]
                        described = f"{name}, {key}: {repr(value)[:40]}"
                        yield described, text(name, json.dumps(changed if place is None else whole))


def attempt(folder: Path) -> tuple[str, str]:
    try:
        vectors = Encoder.from_pretrained(folder, dtype="float32", device="cpu").encode([*SENTENCES, "a" * 64 + "!"])
    except FastvecError as error:
        return type(error).__name__, str(error)
    except BaseException as error:  # anything else is what the tests look for
        return f"unexpected {type(error).__name__}", str(error)
    return "vectors", json.dumps(np.asarray(vectors, dtype=float).round(4).tolist())


def main(folder: Path) -> None:
    print(json.dumps(["as it is", *attempt(folder)]), flush=True)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    cases = ((name, change) for name, (change, _) in CASES.items())
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "model"
        for name, change in chain(cases, sweep(folder)):
            shutil.copytree(folder, copy)
            change(copy)
            print(json.dumps([name, *attempt(copy)]), flush=True)
            shutil.rmtree(copy)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
