import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils._paths import filter_repo_objects

from fastvec.checkpoints.bundled import NAME
from fastvec.checkpoints.checkpoint import resolve
from fastvec.checkpoints.hub import locate
from fastvec.errors import FastvecError, ModelError, UsageError
from fastvec.settings import resolve_settings
from tests.helpers.checkpoints import COMMIT, save_to_hub_cache, use_hub_cache


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_hub_cache(tmp_path / "hub", monkeypatch)


def test_a_hub_id_loads_from_the_cache_offline_with_its_commit(tiny_llama: Path, hub_cache: Path) -> None:
    snapshot = save_to_hub_cache(tiny_llama, hub_cache)
    checkpoint = resolve("org/tiny")
    assert (checkpoint.name, checkpoint.revision, checkpoint.base) == ("org/tiny", COMMIT, snapshot)
    assert resolve("org/tiny", revision="main").revision == COMMIT
    assert resolve("org/tiny", revision=COMMIT).revision == COMMIT


def test_the_same_files_have_the_same_hashes_in_a_folder_and_in_the_cache(tiny_llama: Path, hub_cache: Path) -> None:
    save_to_hub_cache(tiny_llama, hub_cache)
    cached, folder = resolve("org/tiny"), resolve(tiny_llama)
    assert (cached.weights_hash, cached.tokenizer_hash) == (folder.weights_hash, folder.tokenizer_hash)


def test_a_commit_that_changes_only_the_card_makes_no_other_job(tiny_llama: Path, hub_cache: Path) -> None:
    snapshot = save_to_hub_cache(tiny_llama, hub_cache)
    before = resolve_settings("org/tiny", device="cpu")
    shutil.copytree(snapshot, snapshot.with_name("f" * 40), symlinks=True)
    (snapshot.parent.parent / "refs" / "main").write_text("f" * 40)
    after = resolve_settings("org/tiny", device="cpu")
    assert (before.checkpoint.revision, after.checkpoint.revision) == (COMMIT, "f" * 40)
    assert before.fingerprint(None, None) == after.fingerprint(None, None)


def test_weights_in_the_cache_are_not_read_for_their_hash(tiny_llama: Path, hub_cache: Path) -> None:
    snapshot = save_to_hub_cache(tiny_llama, hub_cache)
    before = resolve("org/tiny").weights_hash
    blob = (snapshot / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert resolve("org/tiny").weights_hash == before


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model") == (tmp_path / "model", None)


def test_a_folder_goes_before_a_hub_id_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert locate("org/tiny") == (Path("org/tiny"), None)


# errors from the hub


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "gated on the hub"),
        ("RepositoryNotFoundError", "no such repository on the hub; if it is private"),
        ("RevisionNotFoundError", "the hub has no such revision"),
        ("HfHubHTTPError", r"the download failed \(HfHubHTTPError\)"),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, error: str, message: str) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raised: type[Exception] = getattr(huggingface_hub.errors, error)
        raise raised.__new__(raised)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FastvecError, match=message):
        locate("org/tiny")


def test_no_pickle_and_no_code_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = ["config.json", "model.safetensors", "1_Pooling/config.json", "pytorch_model.bin", "modeling_evil.py"]
    files += ["consolidated.safetensors", "onnx/config.json", "tokenizer.model", "chat_template.jinja", "merges.txt"]

    calls: list[tuple[str | None, set[str]]] = []

    def download(
        _: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str], **others: Any
    ) -> str:
        asked = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        calls.append((revision, set(asked)))
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("org/tiny") == (tmp_path / COMMIT, COMMIT)
    small = {"config.json", "1_Pooling/config.json"}
    others = {"model.safetensors", "tokenizer.model", "chat_template.jinja", "merges.txt"}
    assert calls == [(None, small), (COMMIT, small | others)]


@pytest.mark.parametrize("config", [{"model_type": "mamba"}, {"model_type": "llama", "quantization_config": {"a": 1}}])
def test_the_weights_of_a_refused_model_are_not_downloaded(
    config: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked: list[list[str]] = []

    def download(_: str, *, allow_patterns: list[str], **others: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=r"model type 'mamba' is not supported|has quantized weights"):
        locate("org/tiny")
    assert asked == [["*.json"]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such folder"),
        ("../nowhere", "no such folder"),
        ("/no/where", "no such folder"),
        ("~/no-such-folder", "no such folder"),
        ("models/of/mine", "no such folder"),
        ("C:\\models\\mine", "no such folder"),
        (Path("nowhere"), "no such folder"),
        ("org/absent", "the hub's cache has no complete copy, and the hub cannot be reached"),
        ("a name", "not a valid hub id"),
        ("", "not a valid hub id"),
        ("-/-", "not a valid hub id"),
    ],
)
def test_a_model_name_that_cannot_be_located_is_refused(name: str | Path, message: str, hub_cache: Path) -> None:
    with pytest.raises(FastvecError, match=re.escape(message)):
        locate(name)


def test_a_revision_the_cache_lacks_is_named(tiny_llama: Path, hub_cache: Path) -> None:
    save_to_hub_cache(tiny_llama, hub_cache)
    with pytest.raises(FastvecError, match="org/tiny at revision 'v2': "):
        locate("org/tiny", revision="v2")


def test_a_url_is_refused_without_its_password() -> None:
    with pytest.raises(FastvecError, match="URL") as error:
        locate("https://user:hf_secret@huggingface.co/org/tiny")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("model", ["tiny", "bundled"])
def test_a_model_on_this_machine_has_no_revision(tiny_llama: Path, model: str) -> None:
    with pytest.raises(UsageError, match="only hub ids have one"):
        locate(tiny_llama if model == "tiny" else NAME, revision="main")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("m" * 300, "File name too long"), ("~nobody-of-this-name/model", "Could not determine home directory.")],
)
def test_a_name_that_the_system_refuses(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^{name} cannot be read as a model: {reason}$"):
        locate(name)


def test_a_folder_that_may_not_be_read(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read every folder, so `os.access` is patched to deny it."""
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ModelError, match="cannot be read as a model: permission denied"):
        locate(tiny_llama)


def test_a_file_is_no_model(tiny_llama: Path) -> None:
    with pytest.raises(FastvecError, match="is a file: give the folder"):
        locate(tiny_llama / "model.safetensors")
