"""The diagnosis of an installation, with its traps laid on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from regrow.models import doctor
from regrow.models.doctor import Check, diagnose, floors, installed


def pretend(**versions: str | None) -> Callable[[str], str | None]:
    """Versions as installed, but for the given ones (underscores for dashes)."""
    changed = {name.replace("_", "-"): value for name, value in versions.items()}
    return lambda name: changed[name] if name in changed else installed(name)


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_environment_is_sound() -> None:
    checks = diagnose()
    assert not [check for check in checks if check.status == "fail"]
    names = by_name(checks)
    assert names["torch"].text == installed("torch")
    assert {"python", "cpu", "memory", "gpu", "disk", "cache", "embedded smollm2", "embedded minilm"} <= set(names)


def test_every_complaint_says_what_to_do() -> None:
    broken = pretend(torch=None, transformers="5.2.0", vllm="0.29.0", peft=None)
    for check in diagnose(broken):
        if check.status != "ok":
            assert check.hint, check


def test_missing_and_old_packages() -> None:
    checks = by_name(diagnose(pretend(trl="0.29.1", peft=None)))
    assert checks["trl"].status == "fail" and floors()["trl"] in checks["trl"].text
    assert checks["peft"].status == "fail" and "pip install" in checks["peft"].hint


def test_local_versions_are_no_old_versions() -> None:
    assert by_name(diagnose(pretend(torch="2.6.0+cpu")))["torch"].status == "ok"


def test_torchvision_that_breaks_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = by_name(diagnose(pretend(torchvision="0.28.0", torch="2.13.0+cpu")))["torchvision"]
    assert check.status == "fail" and "nms does not exist" in check.text and "CUDA build" in check.text
    assert "uninstall" in check.hint
    (package / "__init__.py").write_text("")
    assert by_name(diagnose(pretend(torchvision="0.28.0")))["torchvision"].status == "ok"


def test_vllm_stepped_back() -> None:
    assert by_name(diagnose(pretend(vllm="0.29.1")))["vllm stepped back"].status == "warn"
    assert "vllm stepped back" not in by_name(diagnose(pretend(vllm="0.32.0")))


def test_lm_eval_without_its_backend() -> None:
    check = by_name(diagnose(pretend(lm_eval="0.4.13", accelerate=None)))["lm-eval without hf"]
    assert "accelerate" in check.text and "lm-eval[hf]" in check.hint
    assert "lm-eval without hf" not in by_name(diagnose(pretend(lm_eval=None, accelerate=None)))


def test_memory_and_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED_DISK_GIB", 10**9)
    monkeypatch.setattr(doctor, "NEEDED_RAM_GIB", 10**9)
    checks = by_name(diagnose())
    assert checks["disk"].status == "warn" and checks["memory"].status == "warn"


def test_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "none"))
    checks = by_name(diagnose())
    assert "not fetched yet" in checks["embedded smollm2"].text
    assert not (tmp_path / "none").exists(), "looking creates nothing"
