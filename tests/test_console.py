"""What strangers wrote can not act on a terminal or a page: control characters are spelled out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mmjax
from mmjax import cli, config, console, data_check, errors
from mmjax.cli import listing, printing
from mmjax.report import frame

PACKAGE = Path(mmjax.__file__).parent
HOSTILE = {
    "\x1b[2J\x1b]0;owned\x07": r"\x1b[2J\x1b]0;owned\x07",  # clears, retitles
    "\x9b31m": r"\x9b31m",  # the same in one byte
    "a\rmmjax: ok": r"a\x0dmmjax: ok",
    "\b\b\bok": r"\x08\x08\x08ok",
    "\x00\x7f\x85": r"\x00\x7f\x85",
    "gpj\u202egnp.exe": r"gpj\u202egnp.exe",  # shown backwards
    "\u2066x\u2069\u200f\u200e\u061c": r"\u2066x\u2069\u200f\u200e\u061c",
    "caf\udce9": r"caf\udce9",  # a name that is no UTF-8
}
PLAIN = "two\nlines,\ta tab, \u00fc, \u4e2d\u6587, \u05e2\u05d1, \U0001f600, \u200d, \\x1b"


@pytest.mark.fault(
    "control and direction characters in a caption, a key or the name of a file",
    "they are spelled out, on terminals and pages",
)
@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_spelled_out(text):
    assert console.visible(text) == HOSTILE[text]
    assert frame.escape(f"<{text}>") == f"&lt;{HOSTILE[text]}&gt;"
    assert console.inline(f"{text}\n") == HOSTILE[text] + r"\n"
    console.visible(text).encode()  # any terminal can take it


def test_text_of_ours_stays_as_it_is():
    assert console.visible(PLAIN) == PLAIN
    assert console.visible(console.visible("\x1b")) == r"\x1b"
    assert console.inline("a\nb\tc\u2028d") == r"a\nb\tc\u2028d"
    assert console.inline("x" * 500) == "x" * 500
    assert console.inline("x" * 501) == "x" * 497 + "..."


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_do_not_leave_for_a_terminal(text, capsys, monkeypatch):
    console.say(f"record {text} is bad")
    assert cli._report(errors.BadDataError(f"records {text}"), ["train"]) == 65
    monkeypatch.setenv("MMJAX_TRACEBACK", "1")
    cli._report(config.ConfigError(f"field {text}"), ["train"])
    cli._report(RuntimeError(f"a bug with {text}"), ["train"])
    shown = capsys.readouterr().err
    assert shown.count(HOSTILE[text]) == 5
    for whole in (
        printing.table({"name": text}),
        printing.tree({text: {"inner": [text, text]}, "list": [{"a": text}]}),
        listing.text({"recipes": [{"name": text, "does": text}]}),
        data_check.text(
            {"sources": [], "path": text}
            | {"sources": [{"source": "Folder", "split": "train", "records": 1, "read": 1,
                            "tasks": [text], "streams": {}, "bad": {"no_image": [text]},
                            "details": {"no_image": text}}]}
        ),
    ):  # fmt: skip
        assert HOSTILE[text] in whole
        shown += whole
    assert not console.HIDDEN.search(shown)


def test_pages_escape_in_one_place():
    """All text of pages goes through `frame.escape`, and what is printed through `printing`."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "template" in path.parts:
            continue
        text = path.read_text()
        if path.name != "frame.py" and re.search(r"html\.escape|import html\b", text):
            wrong.append(path)
    assert not wrong
