from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def facts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty questions of the bank."""
    from tests.loops.mastered import World

    return World().bank.write(tmp_path_factory.mktemp("facts") / "qa.jsonl")


@pytest.fixture(scope="session")
def whole_gradual(facts_file: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """An uninterrupted gradual fine-tuning: its folder, and the world it happened in."""
    import regrow.engines.choose
    from regrow.loops.gradual import run_gradual
    from tests.loops.mastered import recipe, world_of

    out, world = tmp_path_factory.mktemp("whole") / "run", world_of(facts_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regrow.engines.choose, "make_engine", world.make_engine)
        run_gradual(recipe(tiny_model_dir), facts_file, out)
    return out, world
