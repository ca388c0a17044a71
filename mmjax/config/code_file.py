"""`--code FILE|MODULE`: what it names, and checks that it is what a run was started with.

Code runs because the user names it on the command line. The SHA-256 recorded in a workdir guards
against naming the wrong file or another version of a package by mistake; it is not a security
measure, since the author of a workdir can record anything. `--code-sha256` comes from the user.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from mmjax.config.error import ConfigError

__all__ = [
    "Code",
    "check",
    "check_recorded",
    "digests",
    "file_digest",
    "is_file",
    "many",
    "package",
]

Code: TypeAlias = str | os.PathLike[str] | Sequence[str] | None  # one, several or none

_confirmed: set[str] = set()  # digests that the user of this process has confirmed


def many(code: Code) -> tuple[str, ...]:
    """The files and modules, one by one."""
    if not code:
        return ()
    return tuple(os.fspath(c) for c in ([code] if isinstance(code, str | os.PathLike) else code))


def is_file(code: str) -> bool:
    """Whether it names a file, not a module."""
    is_dotted = all(part.isidentifier() for part in code.split("."))
    return code.endswith(".py") or not is_dotted or os.path.isfile(code)


def check(code: Code, sha256: Code) -> None:
    """Compares files and modules with the digests that the user gives, if any.

    Raises ConfigError: one of the digests is of none of them, or one of them is missing.
    """
    given = {_digest(one): one for one in many(code)} if sha256 else {}
    for said in many(sha256):
        digest = said.lower()
        if not given:
            raise ConfigError("--code-sha256 is of what --code FILE|MODULE names; give both.")
        if digest not in given:
            have = " and ".join(f"{one}: has SHA-256 {d}" for d, one in given.items())
            raise ConfigError(
                f"--code {have}, but --code-sha256 says {said}; give the file or the package that"
                " you mean, or its own digest."
            )
        _confirmed.add(digest)


def check_recorded(code: str, recorded: Mapping[str, Sequence[str]], workdir: str) -> None:
    """Compares with the digests recorded in a workdir; asks on a terminal if it has none.

    Args:
      recorded: digests of packages by name, and of config files by "".

    Raises ConfigError: it is another file or package, or nobody confirmed it.
    """
    what = "file" if is_file(code) else "package"
    digest, name = _digest(code), "" if what == "file" else package(code)[0]
    known = recorded.get(name, ())
    # A file may have been imported as a module when the run was trained.
    if digest in known or digest in _confirmed or digest in set().union(*recorded.values()):
        return
    if known:
        raise ConfigError(
            f"--code {code}: is not the {what} that {workdir} was started with (SHA-256 {digest},"
            f" but run.json records {', '.join(dict.fromkeys(known))}); give that {what}, or"
            f" --code-sha256 {digest} when you mean this one."
        )
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        ask = f"mmjax: {workdir} does not say which {what} it was started with; run {code}? [y/N] "
        print(ask, end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            _confirmed.add(digest)
            return
    raise ConfigError(
        f"--code {code}: {workdir} does not say which {what} it was started with; when this one is"
        f" right, give --code-sha256 {digest}."
    )


def digests(modules: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the packages that modules belong to, by name, as far as they have sources."""
    found = {}
    for module in modules:
        with contextlib.suppress(ConfigError):
            name, spec = package(module)
            found[name] = found.get(name) or _package_digest(name, spec)
    return dict(sorted(found.items()))


def file_digest(code: Code) -> str:
    """SHA-256 of the first file; empty if there is none."""
    return next((_digest(one) for one in many(code) if is_file(one)), "")


def package(module: str) -> tuple[str, importlib.machinery.ModuleSpec]:
    """Name and spec of the package that a module belongs to: the outermost that is no namespace.

    Imports nothing but namespaces, which hold no code. Raises ConfigError: there is no such module.
    """
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise ConfigError(
                f"--code {module}: there is no module named {name!r}; install its package (pip"
                " install ...), correct the name, or give a file ending in .py."
            )
        if spec.has_location:
            return name, spec
    raise ConfigError(
        f"--code {module}: has no source file; name a package or a module that has some."
    )


def _digest(code: str) -> str:
    try:
        if not is_file(code):
            return _package_digest(*package(code))
        return hashlib.sha256(Path(code).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"--code {code}: cannot be read ({error.strerror}).") from error


def _package_digest(name: str, spec: importlib.machinery.ModuleSpec) -> str:
    """SHA-256 of the names and the content of all `.py` files of a package; of a module, its file.

    Raises ConfigError if it cannot be read.
    """
    try:
        if spec.submodule_search_locations is None:
            return hashlib.sha256(Path(spec.origin or "").read_bytes()).hexdigest()
        files = sorted(f for place in spec.submodule_search_locations for f in _sources(place))
        hashed = hashlib.sha256()
        for relative, path in files:
            content = path.read_bytes()
            hashed.update(f"{relative}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
            hashed.update(content)
        return hashed.hexdigest()
    except OSError as error:
        raise ConfigError(f"--code {name}: cannot be read ({error.strerror}).") from error


def _sources(place: str) -> Iterable[tuple[str, Path]]:
    for folder, _, names in os.walk(place):
        for path in (Path(folder, n) for n in names if n.endswith(".py")):
            if path.is_file():  # no pipe, no broken link
                yield path.relative_to(place).as_posix(), path
