"""Workdirs to damage: copies of one run that nothing interrupted."""

from __future__ import annotations

import shutil

import jax
import mini
import pytest

import mmjax


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """(workdir, result) of a run with the steps 4, 8 and 12; nobody writes to it."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    return workdir, mmjax.train(mini.get_config(), workdir, devices=jax.devices()[:1])


@pytest.fixture
def workdir(unbroken, tmp_path):
    """A copy of its workdir."""
    return shutil.copytree(unbroken[0], tmp_path / "run")
