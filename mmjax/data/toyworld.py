"""Old name of `mmjax.demo.numbers`, for one release."""

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("LANGUAGES", "UNSEEN", "Numbers", "words"):
        raise AttributeError(f"module 'mmjax.data.toyworld' has no attribute {name!r}")
    text = f"mmjax.data.toyworld is now mmjax.demo.numbers: import {name} from there."
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    from mmjax.demo import numbers

    return getattr(numbers, name)
