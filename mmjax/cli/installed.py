"""Verbs of installed packages: entry points of the group `mmjax.commands`.

`mmjax --help` lists them from package metadata without importing them; the module of a verb is
imported when it is called. Packages in the working folder do not count as installed.
"""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

from mmjax.config.error import ConfigError, nearest
from mmjax.console import inline

__all__ = ["GROUP", "Verb", "load", "verbs"]

GROUP = "mmjax.commands"
NAME = re.compile(r"[A-Za-z0-9][\w-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb as declared in a package's metadata.

    Fields: `target`: `module:function`; `wrong`: why it cannot be called, "" if it can.
    """

    name: str
    package: str
    target: str
    wrong: str = ""

    @property
    def problem(self) -> str:
        """A line that names the verb and its problem."""
        return f"command {self.name!r} of package {self.package}: {self.wrong}"


def verbs(own: Collection[str]) -> list[Verb]:
    """Verbs of all packages, in the order of Python's search path; `own` are mmjax's verbs."""
    entries = list(_entries())
    return [dataclasses.replace(verb, wrong=_wrong(verb, own, entries)) for verb in entries]


def load(name: str, own: Collection[str]) -> Callable[[list[str]], Any]:
    """The function of a verb, which takes the arguments that follow it.

    Raises ConfigError: no such verb, or its package is not usable.
    """
    installed = verbs(own)
    verb = next((v for v in installed if v.name == name), None)
    if verb is None:
        names = [*own, *(v.name for v in installed)]
        raise ConfigError(f"no command {name!r}{nearest(name, names)}")
    if verb.wrong:
        raise ConfigError(verb.problem)
    from importlib.metadata import EntryPoint

    try:
        function = EntryPoint(verb.name, verb.target, GROUP).load()
    except (Exception, SystemExit) as error:  # a foreign module may raise anything on import
        wrong = inline(f"{verb.target} does not import: {type(error).__name__}: {error}")
        raise ConfigError(dataclasses.replace(verb, wrong=wrong).problem) from error
    if not callable(function):
        wrong = f"{verb.target} is of type {type(function).__name__}, no function"
        raise ConfigError(dataclasses.replace(verb, wrong=wrong).problem)
    return function


def _entries() -> Iterator[Verb]:
    """Verbs in the metadata; of a package installed twice, those of the copy that is imported."""
    from importlib import metadata  # slow, and mmjax's own verbs do not need it

    here, seen = os.getcwd(), set()
    path = [p for p in sys.path if p and os.path.abspath(p) != here]
    for package in metadata.distributions(path=path):
        try:
            if GROUP not in (package.read_text("entry_points.txt") or ""):
                continue
            name = inline(package.metadata["Name"])
            entries = list(package.entry_points.select(group=GROUP))
        except Exception as error:  # damaged metadata must not stop mmjax
            wrong = inline(f"its metadata cannot be read: {type(error).__name__}: {error}")
            yield Verb(
                name="?", package=inline(str(package.locate_file(""))), target="", wrong=wrong
            )
            continue
        if name not in seen:
            seen.add(name)
            yield from (Verb(name=e.name, package=name, target=e.value) for e in entries)


def _wrong(verb: Verb, own: Collection[str], entries: list[Verb]) -> str:
    """Why it cannot be called, as far as that is visible without importing it."""
    if verb.wrong:
        return verb.wrong
    if not NAME.fullmatch(verb.name):
        return "its name is not of letters, digits and dashes"
    if verb.name in own:
        return "mmjax has a command of that name"
    others = [v.package for v in entries if v.name == verb.name and v.package != verb.package]
    if others:
        return f"package {', '.join(others)} has one of that name too"
    module, colon, _ = verb.target.partition(":")
    if not colon:
        return f"{inline(verb.target)} is no module:function"
    return "" if _exists(module.strip()) else f"there is no module {inline(module)}"


def _exists(module: str) -> bool:
    """Whether a module can be found, without importing its parent packages."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # an impossible module name
        return False
    if spec is None:
        return False
    places = list(spec.submodule_search_locations or ())
    if not all(map(os.path.isdir, places)):  # in an archive: checked when it is called
        return True
    for name in rest:
        places = [os.path.join(place, name) for place in places]
        if not any(map(_is_module, places)):
            return False
    return True


def _is_module(path: str) -> bool:
    suffixes = importlib.machinery.all_suffixes()
    return os.path.isdir(path) or any(os.path.isfile(path + suffix) for suffix in suffixes)
