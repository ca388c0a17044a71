"""The folder of jax's compile cache, which belongs to the user alone.

It holds machine code that is executed unchecked. So it is never inside a workdir, which may come
from anyone, and only the user may write to it.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from pathlib import Path
from typing import Any

from mmjax.config.error import ConfigError

__all__ = ["HELP", "MAX_BYTES", "Refused", "base", "own_folder", "use"]

HELP = "where compiled programs are kept, off = nowhere; default: your own cache folder"
MAX_BYTES = 10 * 10**9  # of the user's folder; then the least recently used entries go
FOLDER, LIMIT = "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"
SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
BYTES = "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"


class Refused(Exception):
    """No private folder is available; the message says why."""


def use(given: str | None = None, workdir: str = "") -> None:
    """Configures jax's compile cache: from the option, else the environment, else the user's
    folder. If that is not safe, disables it with a line on stderr.

    Args:
      given: value of `--compile-cache`: a folder, which may be in a bucket, `off`, or None.
      workdir: of the run, where earlier versions kept the cache; prints a line if it still exists.

    Raises ConfigError if the option is empty.
    """
    if given == "":
        raise ConfigError("--compile-cache is empty; name a folder, or off.")
    old = os.path.join(workdir, "compile_cache")
    if workdir and os.path.isdir(old) and os.environ.get("JAX_PROCESS_ID", "0") == "0":
        _say(f"compile_cache in the workdir is no longer used; remove it ({old})")
    values: dict[str, str | None] = {SECONDS: "0.5", BYTES: "-1"}
    values = {name: os.environ.get(name, value) for name, value in values.items()}
    if given is not None:
        named = given if "://" in given else os.path.abspath(given)
        values[FOLDER] = None if given == "off" else named
    elif FOLDER not in os.environ:
        try:
            values[FOLDER] = str(own_folder("compiled"))
            values[LIMIT] = os.environ.get(LIMIT, str(MAX_BYTES))
        except Refused as why:
            _say(f"compiled programs are not kept: {why}; --compile-cache PATH names another place")
    _set(values)


def _set(values: dict[str, str | None]) -> None:
    """Sets values in the environment, which jax reads on import, and in jax if already imported."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
        if "jax" in sys.modules:
            jax: Any = sys.modules["jax"]
            kind = {FOLDER: str, SECONDS: float}.get(name, int)
            jax.config.update(name.lower(), None if value is None else kind(value))


# ------------------------------------------------------------- folders of the user's own


def own_folder(name: str) -> Path:
    """`mmjax/NAME` in the user's cache folder; created if missing.

    Raises Refused, with the reason, if another user may write there, or it cannot be created.
    """
    home = base()
    folder = home / "mmjax" / name
    for place in (home, home / "mmjax", folder):
        try:
            if not place.is_symlink():
                place.mkdir(mode=0o700, parents=place is home, exist_ok=True)
            link, target = os.lstat(place), os.stat(place)
        except OSError as error:
            raise Refused(f"{place} cannot be made ({error.strerror})") from error
        _check(place, link, target, shared=place is home)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refused(f"{folder} is read-only")
    return folder


def base() -> Path:
    """`$XDG_CACHE_HOME`, or `~/.cache`; never relative to the working folder.

    Raises Refused if there is no home folder.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named)
    home = os.environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:  # a user without a passwd entry, as in containers
            home = ""
    if not os.path.isabs(home) or not os.path.isdir(home):
        raise Refused("there is no home folder")
    return Path(home, ".cache")


def _check(place: Path, link: os.stat_result, target: os.stat_result, shared: bool) -> None:
    """Raises Refused unless only the user can write to a folder. A `shared` one, such as /tmp, may
    belong to root, and be writable by others if its sticky bit is set."""
    me, write = os.getuid(), stat.S_IWGRP | stat.S_IWOTH
    owners = (me, 0) if shared else (me,)
    if target.st_uid not in owners or link.st_uid not in (me, 0):
        raise Refused(f"{place} belongs to another user")
    if shared:
        write = 0 if target.st_mode & stat.S_ISVTX else stat.S_IWOTH
    if not stat.S_ISDIR(target.st_mode):
        raise Refused(f"{place} is no folder")
    if target.st_mode & write:
        raise Refused(f"other users may write to {place} (chmod go-w {place} ends that)")


def _say(text: str) -> None:
    print(f"mmjax: {text}", file=sys.stderr, flush=True)
