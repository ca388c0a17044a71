"""`--code FILE`: checks that the file is the one that a run was started with.

A file runs because the user names it on the command line. The SHA-256 recorded in a workdir guards
against naming the wrong file by mistake; it is not a security measure, since the author of a
workdir can record anything. `--code-sha256` comes from the user.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from mmjax.config.error import ConfigError

__all__ = ["check", "check_recorded"]

_confirmed: set[str] = set()  # digests that the user of this process has confirmed


def check(code: str | None, sha256: str | None) -> None:
    """Compares the file with the digest that the user gives; does nothing without one.

    Raises ConfigError: they differ, or the file is missing.
    """
    if sha256 is None:
        return
    if code is None:
        raise ConfigError("--code-sha256 is of a file that --code FILE names; give both.")
    digest = _digest(code)
    if digest != sha256.lower():
        raise ConfigError(
            f"--code {code}: has SHA-256 {digest}, but --code-sha256 says {sha256}; give the file"
            " that you mean, or its own digest."
        )
    _confirmed.add(digest)


def check_recorded(code: str, recorded: Sequence[str], workdir: str) -> None:
    """Compares the file with the digests recorded in a workdir; asks on a terminal if it has none.

    Raises ConfigError: it is another file, or nobody confirmed it.
    """
    digest = _digest(code)
    if digest in recorded or digest in _confirmed:
        return
    if recorded:
        raise ConfigError(
            f"--code {code}: is not the file that {workdir} was started with (SHA-256 {digest}, but"
            f" run.json records {', '.join(dict.fromkeys(recorded))}); give that file, or"
            f" --code-sha256 {digest} when you mean this one."
        )
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        ask = f"mmjax: {workdir} does not say which file it was started with; run {code}? [y/N] "
        print(ask, end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            _confirmed.add(digest)
            return
    raise ConfigError(
        f"--code {code}: {workdir} does not say which file it was started with; when this one is"
        f" right, give --code-sha256 {digest}."
    )


def _digest(code: str) -> str:
    try:
        return hashlib.sha256(Path(code).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"--code {code}: cannot be read ({error.strerror}).") from error
