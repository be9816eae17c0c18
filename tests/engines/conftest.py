from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def smollm2():
    """The embedded model, resolved."""
    from regrow.models.load import resolve_model

    return resolve_model("smollm2")
