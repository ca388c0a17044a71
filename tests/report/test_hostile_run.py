"""A workdir of a stranger: its page shows nothing from elsewhere and takes nothing for its own."""

from __future__ import annotations

import html.parser
import json
import os

import numpy as np
import PIL.Image
import pytest

import mmjax
from mmjax import console
from mmjax.evaluate import samples
from mmjax.report import experts, gallery, page, run

SCRIPT = "<script>alert(1)</script>\u202e\x1b[2J"


@pytest.fixture
def folder(tmp_path):
    """The folder of the newest samples of a run."""
    files = {
        "config.json": {"config": {"name": "run", "total_steps": 60}},
        "run.json": {"starts": [{}]},
        "evals/generation/60.json": {"real_to_text_exact": 0.5},
        "samples/60/samples.json": {"entries": []},
    }
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "metrics.jsonl").write_text('{"step": 60, "time": 1.0, "train/loss": 1.0}\n')
    return tmp_path / "samples" / "60"


class Balanced(html.parser.HTMLParser):
    """Every tag that is opened is closed, in order: no text has become markup."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open += [tag] if tag not in ("meta", "link", "img", "br") else []

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def shown(folder) -> str:
    text = page.html(run.read(str(folder.parent.parent)))
    Balanced(text)
    return text


def name(folder, *values: str) -> None:
    entries = [{"given": {"text": "what is it?"}, "wanted": {"text": value}} for value in values]
    (folder / samples.FILE).write_text(json.dumps({"entries": entries}))


@pytest.mark.fault(
    "a file that the samples of a run name is a link that leads out of the run",
    "the report does not show it",
)
@pytest.mark.parametrize("what", ["file", "folder", "step", "samples", "list"])
def test_links_out_of_a_run_are_not_shown(what, folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("the secret")
    (outside / samples.FILE).write_text(
        json.dumps({"entries": [{"given": {}, "wanted": {"text": "secret.txt"}}]})
    )
    if what == "file":
        (folder / "a.txt").symlink_to(outside / "secret.txt")
        name(folder, "a.txt")
    elif what == "list":
        (folder / samples.FILE).unlink()
        (folder / samples.FILE).symlink_to(outside / samples.FILE)
        (folder / "secret.txt").symlink_to(outside / "secret.txt")
    elif what == "folder":
        (folder / "drawn").symlink_to(outside)
    elif what == "step":
        (folder.parent / "70").symlink_to(outside)
    else:
        (outside / "90").mkdir()
        for file in ("secret.txt", samples.FILE):
            (outside / file).rename(outside / "90" / file)
        folder.parent.rename(folder.parent.with_name("old"))
        folder.parent.symlink_to(outside)
    assert "the secret" not in shown(folder)


def test_a_link_inside_a_run_is_shown(folder):
    (folder.parent / "kept.txt").write_text("the value")
    (folder / "a.txt").symlink_to("../kept.txt")
    name(folder, "a.txt")
    assert "the value" in shown(folder)


@pytest.mark.fault("a pipe among the files of a run", "the report does not wait for it")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["a.txt", "a.png", "samples.json"])
def test_pipes_in_a_run_are_not_waited_for(what, folder):
    name(folder, "a.txt", "a.png")
    (folder / what).unlink(missing_ok=True)
    os.mkfifo(folder / what)
    os.mkfifo(folder.parent.parent / "evals" / "generation" / "70.json")
    (folder.parent.parent / "metrics.jsonl").unlink()
    os.mkfifo(folder.parent.parent / "metrics.jsonl")
    assert "no metrics.jsonl" in shown(folder)


@pytest.mark.fault(
    "markup and control characters in whatever a run holds", "they are shown as text, spelled out"
)
def test_markup_and_control_characters_of_a_run_are_text(folder):
    root = folder.parent.parent
    (folder / "a.txt").write_text(SCRIPT)
    (folder / "b.json").write_text(json.dumps({SCRIPT: SCRIPT}))
    name(folder, SCRIPT, "a.txt", "b.json")
    rows = [{"step": i, "time": 1.0, "train/loss": 1.0, f"train/{SCRIPT[1:]}/loss": 1.0,
             f"data/{SCRIPT[1:9]}/slots": 2.0} for i in (1, 2)]  # fmt: skip
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "evals" / "generation" / "60.json").write_text(json.dumps({SCRIPT: 0.5}))
    layer = {"layer": SCRIPT, "where": SCRIPT, "load": [[1, 2]]}
    table = {"steps": [1, 2], "streams": [SCRIPT], "layers": [layer]}
    (root / "experts.json").write_text(json.dumps(table))
    config = {"name": SCRIPT, "tasks": {SCRIPT: {}}, "modalities": {SCRIPT: {}}}
    (root / "config.json").write_text(json.dumps({"config": config}))
    text = shown(folder)
    assert "<script" not in text
    assert not console.HIDDEN.search(text)
    assert r"\u202e\x1b[2J" in text
    found = mmjax.report(str(root))
    assert not console.HIDDEN.search("\n".join(found["summary"]))


@pytest.mark.fault(
    "samples, metrics and scores of a run that are of other types than ours",
    "what cannot be shown is left out; the report is made",
)
@pytest.mark.parametrize(
    "document",
    [
        "[]",
        '{"entries": 3}',
        '{"entries": [3, {"given": 3, "wanted": []}, {"score": 3}]}',
        '{"entries": [{"given": {"a": {}}, "wanted": {"b": [[]]}, "score": {"b": "x"}}]}',
        '{"samples": [3, {"files": 3}], "request": 3}',
        '{"samples": [{"files": {"a": 1}}], "request": {"given": {"t": 3}}}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_documents_of_other_types_are_left_out(document, folder):
    root = folder.parent.parent
    (folder / samples.FILE).write_text(document)
    (root / "scores.json").write_text('{"real_to_text_exact": {"chance": "<b>"}, "a": 3}')
    (root / "evals" / "generation" / "60.json").write_text('{"a_R@1": "x", "b": 1e999, "c": NaN}')
    (root / "metrics.jsonl").write_text(
        '{"step": "x"}\n{"step": 1, "train/loss": "high"}\n[]\n{"step": 2, "train/loss": 1e999}\n'
    )
    assert "<b>" not in shown(folder).replace("<b>3", "")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"steps": "12"},
        {"steps": [1, 2], "streams": ["a"], "layers": []},
        {"steps": [1], "streams": ["a"], "layers": [{"load": [[1]]}]},
        {"steps": [1, 2], "streams": ["a"], "layers": [{"load": [[1], [2]]}]},
        {"steps": [1, 2], "streams": ["a"], "layers": [{"load": [[]]}]},
        {"steps": [1, 2], "streams": ["a"], "layers": [{"load": [[1, True]]}]},
        {"steps": [1, 2], "streams": ["a"], "layers": [{"load": [["<b>"]]}]},
        {"steps": [1, 2], "streams": ["a"], "layers": [{"load": [[10**400]]}]},
        {"steps": [1, 2], "streams": ["a"], "layers": [{"load": [[-1]]}]},
        {"steps": [1, 2], "streams": [], "layers": [{"load": []}]},
        {"steps": [1, 2], "streams": ["a"], "layers": [3]},
    ],
)
def test_a_table_of_experts_of_another_form_is_left_out(document):
    assert experts.read(document) is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.json", b'[["x", 0, 1, 1]]'),
        ("a.json", b"[[1e400, 0, 1, 1]]"),
        ("a.json", b"[" * 90_000),
        ("a.json", b"\xff"),
        ("a.txt", b"\xff\xfe text"),
        ("a.wav", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0" + b"\x40\x1f\0\0" * 2
         + b"\2\0\x10\0data\1\0\0\0\1"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\xff" * 8),
        ("a.svg", b"<svg onload='alert(1)'></svg>"),
        ("a.html", b"<script>"),
    ],
)  # fmt: skip
def test_files_of_a_run_that_are_broken_are_not_shown(file, content, folder):
    (folder / file).write_bytes(content)
    name(folder, file)
    text = shown(folder)
    assert "<script" not in text
    assert "<svg onload" not in text
    assert "href" not in text.partition('class="sample card"')[2].partition("</article>")[0]


def test_large_files_of_a_run_are_not_shown(folder, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_BYTES", 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "a.png")
    (folder / "a.txt").write_text("long " * 1000)
    os.truncate(folder / "a.txt", 1 << 40)
    name(folder, "a.png", "a.txt")
    text = shown(folder)
    assert "a.png is not shown" in text
    assert "a.txt is not shown" in text
