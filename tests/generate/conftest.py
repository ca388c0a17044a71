"""One run of the small generative world, for all tests of generation."""

from __future__ import annotations

import jax
import letters
import pytest

import mmjax


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """A run that has learned to name and to draw its few words."""
    folder = tmp_path_factory.mktemp("generate") / "run"
    mmjax.train(letters.get_config(), folder, devices=jax.devices()[:1], code=letters.__file__)
    return folder


@pytest.fixture(scope="session")
def view(workdir):
    """Its model on one device."""
    return mmjax.load(str(workdir), code=letters.__file__, devices=jax.devices()[:1])
