"""What the tests on a GPU share."""

from __future__ import annotations

import pytest


@pytest.fixture
def shared_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU for all ranks: they talk through gloo, and matrix products come out the same each time."""
    monkeypatch.setenv("RESTOW_CUDA_COLLECTIVES", "gloo")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
