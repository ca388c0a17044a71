"""The classes that a `config.json` may name."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import importlib.util
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.config import code_file
from mmjax.config.code_file import Code
from mmjax.config.error import ConfigError
from mmjax.config.modules import import_module, load_module
from mmjax.config.names import CODE, PREFIX
from mmjax.config.serial import is_config

__all__ = ["modules_of", "seam_classes", "seam_modules"]

SEAM_PACKAGES = (
    "modalities",
    "tokenizers",
    "data",
    "models",
    "objectives",
    "optim",
    "parallel",
    "evaluate",
    "demo",
)
SEAM_MODULES = ("experiment", "generate.plan")
OLD_NAMES = {"mmjax.data.deal"}  # they warn when imported, and their classes go by the new name


def seam_modules() -> Iterator[types.ModuleType]:
    """The modules whose classes make up a config, imported one by one.

    For a package with `__all__`, only those that define its public names. A module that needs a
    missing package (grain, for data workers) is skipped.
    """
    names = [f"mmjax.{m}" for m in SEAM_MODULES if importlib.util.find_spec(f"mmjax.{m}")]
    for seam in SEAM_PACKAGES:
        package = importlib.import_module(f"mmjax.{seam}")
        if public := getattr(package, "__all__", ()):
            names += {getattr(package, n).__module__ for n in public}
        else:
            names += [f"mmjax.{seam}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    for name in sorted(set(names) - OLD_NAMES):
        try:
            with warnings.catch_warnings():  # old names of modules are for configs of before
                warnings.filterwarnings("ignore", r"mmjax\.\S+ is now", DeprecationWarning)
                module = importlib.import_module(name)
            yield module
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("mmjax"):
                raise


def seam_classes(code: Code = None, *, of: Any = None) -> dict[str, type]:
    """Classes that JSON may name, by `module:Class`: those of the seam modules, and of code.

    Args:
      code: files, and modules of installed packages, which are imported. A package counts with all
        its modules that are imported then.
      of: a config whose own classes count too, with those beside them.

    Raises ConfigError: code cannot be imported, defines no class, or two of one name in its files.
    """
    classes = {}
    for module in seam_modules():
        classes |= {f"{module.__name__}:{name}": cls for name, cls in _defined(module)}
    for one in code_file.many(code):
        classes |= _file_classes(one) if code_file.is_file(one) else _module_classes(one)
    if of is not None:
        classes |= _classes_beside(of)
    return classes


def modules_of(config: Any) -> set[str]:
    """Modules that the classes of a config are of, without those of mmjax."""
    found, left = set(), [config]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, (tuple, list)):
            left += value
        elif is_config(value) or isinstance(value, enum.Enum):
            found.add(type(value).__module__)
            known = () if isinstance(value, enum.Enum) else dataclasses.fields(value)
            left += (getattr(value, field.name) for field in known)
    return {m for m in found if m.partition(".")[0] != "mmjax"}


def _parts(module: types.ModuleType) -> Iterator[tuple[str, type]]:
    """Public names of the dataclasses and enums that a module holds."""
    for name, cls in list(vars(module).items()):
        if not isinstance(cls, type) or name.startswith("_"):
            continue
        if dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum):
            yield name, cls


def _defined(module: types.ModuleType) -> Iterator[tuple[str, type]]:
    return ((n, c) for n, c in _parts(module) if c.__module__ == module.__name__)


def _file_classes(path: str) -> dict[str, type]:
    """Classes of a config file and of those that it shares with its family."""
    own = load_module(path)
    shared = [m for m in vars(own).values() if isinstance(m, types.ModuleType)]
    classes: dict[str, type] = {}
    for module in (own, *(m for m in shared if m.__name__.startswith(PREFIX))):
        for name, cls in _defined(module):
            if classes.setdefault(name, cls) is not cls:
                raise ConfigError(
                    f"Class {name!r} is defined in {path} and in a file that it loads; a"
                    " config cannot tell them apart, rename one."
                )
    # A program that trains may have imported the file as a module.
    return {f"{name}:{n}": c for name in (CODE, Path(path).stem) for n, c in classes.items()}


def _module_classes(module: str) -> dict[str, type]:
    """Imports a module; classes of its package."""
    package, _ = code_file.package(module)
    import_module(module)
    classes = _package_classes(package)
    if not classes:
        raise ConfigError(
            f"--code {module}: none of the modules that are imported with it has a dataclass; name"
            f" the one that has, such as {package}.layers."
        )
    return classes


def _classes_beside(config: Any) -> dict[str, type]:
    """Classes in the files and packages that the parts of a config are of."""
    classes = {}
    for name in modules_of(config):
        module = sys.modules.get(name)
        if module is None:
            continue
        if name == "__main__" or name.startswith(PREFIX):
            classes |= {f"{CODE}:{public}": cls for public, cls in _defined(module)}
        else:
            with contextlib.suppress(ConfigError):  # it cannot be found by its name any more
                classes |= _package_classes(code_file.package(name)[0])
    return classes


def _package_classes(package: str) -> dict[str, type]:
    """Classes of a package, by each of its imported modules that holds them."""
    classes = {}
    for name, module in sorted(sys.modules.items()):
        if f"{name}.".startswith(f"{package}.") and isinstance(module, types.ModuleType):
            for public, cls in _parts(module):
                if f"{cls.__module__}.".startswith(f"{package}."):
                    classes[f"{name}:{public}"] = cls
    return classes
