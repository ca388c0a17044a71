"""Commands of clouds that stand in for the real ones, and a cache folder of the test's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import stand_in

from mmjax.launch import filling


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def commands(tmp_path, monkeypatch) -> stand_in.Commands:
    return stand_in.Commands(tmp_path / "stand_in", monkeypatch)


@pytest.fixture
def quick(monkeypatch):
    """Scripts that look again at once, instead of after half a minute."""
    real = filling.template
    soon = lambda name: re.sub("POLL=[0-9]+", "POLL=0.1", real(name))
    monkeypatch.setattr(filling, "template", soon)
