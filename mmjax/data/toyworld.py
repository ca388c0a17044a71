"""Old name of `mmjax.demo.numbers`, for one release."""

from typing import Any

import mmjax

MOVED = ("LANGUAGES", "UNSEEN", "Numbers", "words")


def __getattr__(name: str) -> Any:
    return mmjax.moved_name(name, "mmjax.data.toyworld", "mmjax.demo.numbers", MOVED)
