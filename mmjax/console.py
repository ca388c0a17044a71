"""What leaves for a terminal: a run's story and progress, and text of strangers, made harmless."""

from __future__ import annotations

import os
import re
import sys

__all__ = ["Progress", "inline", "say", "visible"]

NOTEBOOK = "JPY_PARENT_PID"  # in the environment of Jupyter kernels and of what they start
# What moves a cursor, colours, retitles or turns the direction of what is shown, and the halves of
# surrogate pairs, which no terminal or file can take.
HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"
    "\\ud800-\\udfff]"
)
SPACED = re.compile("[\\n\\t\\u2028\\u2029]")


def visible(text: str) -> str:
    """Text with its control and direction characters spelled out, `\\x1b`, `\\u202e`.

    For whatever leaves for a terminal or a page. Newlines and tabs stay: they are ours.
    """
    return HIDDEN.sub(_spelled, text)


def inline(text: str, room: int = 500) -> str:
    """A stranger's text as part of a line of ours: without newlines, and not without end."""
    shown = visible(SPACED.sub(_spelled, text[: room + 1]))
    return shown if len(shown) <= room else f"{shown[: room - 3]}..."


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {9: "\\t", 10: "\\n"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


class Progress:
    """A bar on a terminal, a line a log elsewhere.

    Commands in a notebook (`!mmjax train`) see a terminal too, but every drawing of the bar stays.
    """

    def __init__(self, total: int, start: int, active: bool, name: str = "train"):
        self._active, self._bar, self._total = active, None, total
        if active and sys.stderr.isatty() and NOTEBOOK not in os.environ:
            from rich import console, progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[text]}"),
                console=console.Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, completed=start, text="")

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, text: str) -> None:
        """A line about a step."""
        if self._bar is not None:
            self._bar.update(self._task, text=text)
        elif self._active:
            print(f"step {step}/{self._total}  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def say(text: str, active: bool = True) -> None:
    """A line of the run's story, on standard error."""
    if active:
        print(visible(text), file=sys.stderr, flush=True)
