"""Verbs of installed packages: entry points of the group `mmjax.commands`.

`mmjax --help` names them by what the packages' metadata say and imports none of them; the module of
a verb is imported when it is called. What lies in the working folder is not installed.
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
    """What a package's metadata say of a verb.

    Fields: `target`: `module:function`; `wrong`: why it cannot be called, "" where it can.
    """

    name: str
    package: str
    target: str
    wrong: str = ""

    @property
    def problem(self) -> str:
        """A line that names the verb and what is wrong with it."""
        return f"command {self.name!r} of package {self.package}: {self.wrong}"


def verbs(own: Collection[str]) -> list[Verb]:
    """Those of all packages, in the order of Python's search path; `own` are those of mmjax."""
    found = list(_entries())
    return [dataclasses.replace(verb, wrong=_wrong(verb, own, found)) for verb in found]


def load(name: str, own: Collection[str]) -> Callable[[list[str]], Any]:
    """The function of a verb, which takes the arguments that follow it.

    Raises ConfigError: there is no such verb, or its package cannot be used.
    """
    found = verbs(own)
    verb = next((v for v in found if v.name == name), None)
    if verb is None:
        names = [*own, *(v.name for v in found)]
        raise ConfigError(f"no command {name!r}{nearest(name, names)}")
    if verb.wrong:
        raise ConfigError(verb.problem)
    from importlib.metadata import EntryPoint

    try:
        function = EntryPoint(verb.name, verb.target, GROUP).load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module does when imported
        wrong = inline(f"{verb.target} does not import: {type(error).__name__}: {error}")
        raise ConfigError(dataclasses.replace(verb, wrong=wrong).problem) from error
    if not callable(function):
        wrong = f"{verb.target} is of type {type(function).__name__}, no function"
        raise ConfigError(dataclasses.replace(verb, wrong=wrong).problem)
    return function


def _entries() -> Iterator[Verb]:
    """What the metadata say; of packages that are there twice, the one that Python imports."""
    from importlib import metadata  # slow, and verbs of ours come without

    here, seen = os.getcwd(), set()
    path = [p for p in sys.path if p and os.path.abspath(p) != here]
    for package in metadata.distributions(path=path):
        try:
            if GROUP not in (package.read_text("entry_points.txt") or ""):
                continue
            name = inline(package.metadata["Name"])
            entries = list(package.entry_points.select(group=GROUP))
        except Exception as error:  # metadata that are damaged are no reason to end
            wrong = inline(f"its metadata cannot be read: {type(error).__name__}: {error}")
            yield Verb(
                name="?", package=inline(str(package.locate_file(""))), target="", wrong=wrong
            )
            continue
        if name not in seen:
            seen.add(name)
            yield from (Verb(name=e.name, package=name, target=e.value) for e in entries)


def _wrong(verb: Verb, own: Collection[str], found: list[Verb]) -> str:
    """Why it cannot be called, as far as that is seen without an import."""
    if verb.wrong:
        return verb.wrong
    if not NAME.fullmatch(verb.name):
        return "its name is not of letters, digits and dashes"
    if verb.name in own:
        return "mmjax has a command of that name"
    others = [v.package for v in found if v.name == verb.name and v.package != verb.package]
    if others:
        return f"package {', '.join(others)} has one of that name too"
    module, colon, _ = verb.target.partition(":")
    if not colon:
        return f"{inline(verb.target)} is no module:function"
    return "" if _exists(module.strip()) else f"there is no module {inline(module)}"


def _exists(module: str) -> bool:
    """Whether a module is found, without importing the packages that it is in."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a name that no module can have
        return False
    if spec is None:
        return False
    places = list(spec.submodule_search_locations or ())
    if not all(map(os.path.isdir, places)):  # in an archive: seen when it is called
        return True
    for name in rest:
        places = [os.path.join(place, name) for place in places]
        if not any(map(_is_module, places)):
            return False
    return True


def _is_module(path: str) -> bool:
    suffixes = importlib.machinery.all_suffixes()
    return os.path.isdir(path) or any(os.path.isfile(path + suffix) for suffix in suffixes)
