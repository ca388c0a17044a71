"""mmjax: tokenize every modality, train one transformer on all of them.

`import mmjax` imports nothing else; the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {  # name -> module that defines it
    "ConfigError": "mmjax.config",
    "Experiment": "mmjax.experiment",
    "Task": "mmjax.data.task",
    "embed": "mmjax.evaluate",
    "load": "mmjax.evaluate",
}
# Modules whose main function has the module's own name: mmjax.train.train(...).
_MODULES = ("checkpoint", "config", "evaluate", "train")

__all__ = ["__version__", *_PUBLIC, *_MODULES]

if TYPE_CHECKING:  # for editors and type checkers
    from mmjax import checkpoint, config, evaluate, train
    from mmjax.config import ConfigError
    from mmjax.data.task import Task
    from mmjax.evaluate import embed, load
    from mmjax.experiment import Experiment


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _MODULES:
        return importlib.import_module(f"mmjax.{name}")
    else:
        raise AttributeError(f"module 'mmjax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
