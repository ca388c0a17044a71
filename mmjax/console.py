"""Console output: messages, progress bars, and untrusted text made safe to print."""

from __future__ import annotations

import functools
import os
import re
import sys

__all__ = ["Progress", "inline", "say", "visible"]

NOTEBOOK = "JPY_PARENT_PID"  # set in the environment of Jupyter kernels and their child processes
# Characters that move the cursor, change colours, titles or text direction, and halves of surrogate
# pairs, which cannot be encoded.
HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"
    "\\ud800-\\udfff]"
)
SPACED = re.compile("[\\n\\t\\u2028\\u2029]")


def visible(text: str) -> str:
    """Text with control and direction characters spelled out: `\\x1b`, `\\u202e`.

    Use it for all text on a terminal or a page. Newlines and tabs are kept.
    """
    return HIDDEN.sub(_spelled, text)


def inline(text: str, room: int = 500) -> str:
    """Untrusted text made safe within a line: no newlines, limited length."""
    shown = visible(SPACED.sub(_spelled, text[: room + 1]))
    return shown if len(shown) <= room else f"{shown[: room - 3]}..."


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {9: "\\t", 10: "\\n"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


class Progress:
    """A progress bar on a terminal, a line per log elsewhere.

    Commands in a notebook (`!mmjax train`) see a terminal too, but would keep every redraw of the
    bar.
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
        """Sets the number of finished steps."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, text: str) -> None:
        """Prints a line about a step."""
        if self._bar is not None:
            self._bar.update(self._task, text=text)
        elif self._active:
            print(f"step {step}/{self._total}  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restores the terminal."""
        if self._bar is not None:
            self._bar.stop()


def say(text: str, active: bool = True) -> None:
    """Prints a message on standard error."""
    if active:
        print(visible(text), file=sys.stderr, flush=True)


@functools.cache
def say_once(text: str) -> None:
    """`say`, but not the same again in a process."""
    say(text)
