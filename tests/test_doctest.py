"""The examples in the docstrings of objectives, routers, layouts and modalities run as shown."""

from __future__ import annotations

import doctest
import sys
from collections.abc import Iterator

import pytest

from mmjax.config import classes
from mmjax.data.task import Layout
from mmjax.modalities.modality import Modality
from mmjax.models.routers import Router
from mmjax.objectives import Objective

FAMILIES = (Objective, Router, Layout, Modality)


def members(base: type) -> Iterator[type]:
    """The public subclasses in mmjax of a class, at any depth."""
    for cls in base.__subclasses__():
        if cls.__module__.startswith("mmjax.") and not cls.__name__.startswith("_"):
            yield cls
        yield from members(cls)


list(classes.seam_modules())  # imports the modules of all members
MEMBERS = sorted({m for base in FAMILIES for m in members(base)}, key=lambda m: m.__qualname__)
MODULES = sorted({m.__module__ for m in MEMBERS})


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
def test_each_member_has_an_example(member):
    assert ">>> " in (vars(member)["__doc__"] or ""), f"{member.__name__}: add an example (>>>)"


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name):
    module = sys.modules[name]
    # Beside what the module defines, an example imports what it uses, so that it can be copied.
    own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", "") == name}
    result = doctest.testmod(module, globs=own, optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed
