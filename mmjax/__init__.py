"""mmjax: tokenize every modality, train one transformer on all of them.

`import mmjax` imports nothing else; a public name is imported when it is first used. `train`,
`data_check`, `evaluate`, `export`, `extend`, `generate`, `load`, `plan`, `report` and
`train_tokenizer` are modules that can be called: `mmjax.train(...)` is `mmjax.train.train(...)`.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Experiment",
    "Task",
    "__version__",
    "checkpoint",
    "config",
    "data_check",
    "embed",
    "evaluate",
    "export",
    "extend",
    "generate",
    "load",
    "plan",
    "report",
    "train",
    "train_tokenizer",
]

if TYPE_CHECKING:  # for editors and type checkers
    from mmjax import (
        config,
        evaluate,
        export,
        extend,
        generate,
        plan,
        report,
        train,
        train_tokenizer,
    )
    from mmjax.cli import data_check
    from mmjax.config import ConfigError
    from mmjax.data.task import Task
    from mmjax.evaluate import embed
    from mmjax.experiment import Experiment
    from mmjax.run import checkpoint, load

_HOME = {  # public name -> module that defines it; the others are modules
    "ConfigError": "mmjax.config",
    "Experiment": "mmjax.experiment",
    "Task": "mmjax.data.task",
    "embed": "mmjax.evaluate",
}
_DEEPER = {  # public modules that lie elsewhere
    "checkpoint": "mmjax.run.checkpoint",
    "data_check": "mmjax.cli.data_check",
    "load": "mmjax.run.load",
}
_VERBS = (
    *("data_check", "evaluate", "export", "extend", "generate", "load", "plan", "report"),
    *("train", "train_tokenizer"),
)


class _Verb(types.ModuleType):
    """A module that can be called like its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(types.ModuleType):
    """Sees each submodule when the import system binds it, whoever imports it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _VERBS and type(value) is types.ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mmjax' has no attribute {name!r}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    module = importlib.import_module(_DEEPER.get(name, f"mmjax.{name}"))
    setattr(sys.modules[__name__], name, module)
    return module


def moved(old: str, new: str, *, for_good: bool = False) -> None:
    """Makes a module's old name, which is being imported, stand for the module of the new name.

    With `for_good` both are public; otherwise the old one goes with the next release, and says so.
    """
    if not for_good:
        import warnings

        text = f"{old} is now {new}; the old name goes with the next release."
        warnings.warn(text, DeprecationWarning, stacklevel=3)
    sys.modules[old] = importlib.import_module(new)


def moved_name(name: str, old: str, new: str, names: Collection[str]) -> Any:
    """What a module's `__getattr__` gives for the names that have moved to another module.

    Raises AttributeError for other names.
    """
    if name not in names:
        raise AttributeError(f"module {old!r} has no attribute {name!r}")
    import warnings

    text = f"{old}.{name} is now {new}.{name}: import it from there."
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(new), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
