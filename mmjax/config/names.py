"""Names of classes in JSON, `module:Class`, and the classes that they stand for.

`code:Class` is of a config file, a program or a notebook, which have no name to import them by.
Older files have the class alone. A name is looked up among classes that are there already: nothing
is imported because a file names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmjax.config.error import ConfigError, nearest

__all__ = ["CODE", "PREFIX", "name_of", "resolve", "same", "short", "short_names"]

CODE = "code"  # the module of classes that cannot be imported by a name
PREFIX = "mmjax_config_"  # of the modules made from config files
MAX_NAME = 300  # characters


def name_of(cls: type) -> str:
    """`module:Class`."""
    is_code = cls.__module__.startswith(PREFIX) or cls.__module__ == "__main__"
    return f"{CODE if is_code else cls.__module__}:{cls.__name__}"


def short_names(tree: Any, *, every: bool = False) -> Any:
    """JSON values in which classes of mmjax, and with `every` all, are named without their module.

    So the JSON stays the same when a class of mmjax moves to another module.
    """
    if isinstance(tree, Mapping):
        return {
            k: short(v, every) if k == "class" else short_names(v, every=every)
            for k, v in tree.items()
        }
    if isinstance(tree, (list, tuple)):
        return [short_names(v, every=every) for v in tree]
    return tree


def short(name: Any, every: bool = False) -> Any:
    """The name without the module, for a class of mmjax or with `every`."""
    if isinstance(name, str) and (every or _is_own(name)):
        return name.rpartition(":")[2]
    return name


def _is_own(name: str) -> bool:
    """Whether it names a module of mmjax."""
    return ":" in name and _package(name) == "mmjax"


def _package(name: str) -> str:
    return name.rpartition(":")[0].partition(".")[0]


def same(one: Any, other: Any) -> bool:
    """Whether two names may stand for one class: older names have no module."""
    is_old = any(isinstance(n, str) and ":" not in n for n in (one, other))
    return short(one, is_old) == short(other, is_old)


def resolve(name: Any, classes: Mapping[str, type], path: str) -> type:
    """The class of a name.

    Args:
      name: `module:Class` or, in older files, `Class`. classes: those that may be named, by
        `module:Class`. path: of the value in the config, for messages.

    Raises ConfigError: there is none, or more than one.
    """
    if not _is_name(name):
        raise ConfigError(
            f"{path}: class={repr(name)[:60]} is no name of a class, such as"
            " mmjax.data.task:Task or my_package.layers:Mixer."
        )
    if name in classes:
        return classes[name]
    module, _, bare = name.rpartition(":")
    if module and not _is_own(name):
        raise ConfigError(f"{path}: {_absent(module, bare, classes)}")
    # A class of mmjax may have moved to another module since.
    allowed = {n: c for n, c in classes.items() if not module or _is_own(n)}
    found = {c: n for n, c in reversed(allowed.items()) if n.rpartition(":")[2] == bare}
    if len(found) > 1:
        raise ConfigError(
            f"{path}: class {bare!r}, which this older config.json names without its module, may"
            f" be {' or '.join(sorted(found.values()))}; `mmjax train CONFIG --workdir DIR` with"
            " the config of the run writes it anew."
        )
    for cls in found:
        return cls
    remedy = "" if module else " A class of a config file or a package needs --code FILE|MODULE."
    raise ConfigError(f"{path}: no class {bare!r}{_nearest(bare, allowed)}{remedy}")


def _is_name(name: Any) -> bool:
    if not isinstance(name, str) or len(name) > MAX_NAME:
        return False
    module, colon, bare = name.rpartition(":")
    parts = module.split(".") if colon else []
    return all(part.isidentifier() for part in (*parts, bare))


def _absent(module: str, bare: str, classes: Mapping[str, type]) -> str:
    """Why there is no such class, and what to do."""
    package = module.partition(".")[0]
    there = [n for n in classes if n.startswith(f"{module}:")]
    if there and module == CODE:
        return f"no class {bare!r} in the file of --code{_nearest(bare, there)}"
    if there:
        return f"module {module} has no class {bare!r}{_nearest(bare, there)}"
    if module == CODE:
        return (
            f"class {bare!r} is in no file that --code names; it stands in the config file of the"
            " run: --code FILE."
        )
    if any(_package(n) == package for n in classes):
        return (
            f"class {bare!r} is of module {module}, which what --code names does not import; if you"
            f" trust it, name it as well: --code {module}."
        )
    return (
        f"class {bare!r} is of module {module}, which is imported only when you name it; if you"
        f" trust it: --code {package}."
    )


def _nearest(bare: str, names: Iterable[str]) -> str:
    return nearest(bare, (n.rpartition(":")[2] for n in names))
