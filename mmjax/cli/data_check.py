"""Data check: statistics of what a model reads from each source, and a page of examples."""

from __future__ import annotations

import collections
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from mmjax import console, errors, files
from mmjax.data import batches
from mmjax.data.reader import NAMED, Reader, values_of
from mmjax.data.source import BadRecord, Source, key_of
from mmjax.experiment import Experiment
from mmjax.modalities.modality import Modality
from mmjax.report import frame, gallery
from mmjax.typing import Piece, Vocabulary

with epy.lazy_imports():
    from mmjax.run import workdir as workdir_lib

__all__ = ["data_check", "text"]

SHOWN = 24  # records per source on the page
HEADS = ("stream", "present", "values", "room", "tokens", "cut")
Found = dict[str, Any]


def data_check(
    experiment: Experiment, out: str | Path | None = None, records: int = 200
) -> dict[str, Any]:
    """Reads a sample of the train split of every source.

    Tokenizers come from the run that `init` names. Untrained text tokenizers are trained on the
    sample, so token counts of text only approximate those of the run.

    Args:
      out: HTML file to write: images, sounds and texts after encoding and decoding.
      records: number of records per source, evenly spaced.

    Returns:
      `sources`: split, size, streams (shapes, tokens) and bad records by reason, for each source;
      `problems`: messages; `too_bad`: whether the share of bad records is one of them.

    Raises ValueError for a source that cannot be opened.
    """
    if records < 1:
        raise ValueError(f"data_check: records={records} reads nothing; use 1 or more.")
    split, folder = experiment.data.train_split, Path(tempfile.mkdtemp(prefix="mmjax_check_"))
    try:
        checked = [
            _check(experiment, source, names, split, records, folder / str(i))
            for i, (source, names) in enumerate(_sources(experiment))
        ]
        if out is not None:
            target = Path(out).expanduser()
            target.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(target) as partial:
                partial.write_text(_page(experiment.name, checked), encoding="utf-8")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report: dict[str, Any] = {"sources": [{k: v for k, v in s.items() if k != "cards"}
                                          for s in checked]}  # fmt: skip
    report["problems"], report["too_bad"] = _problems(checked, experiment.guards.allowed_bad)
    report["path"] = str(out) if out is not None else ""
    return report


def raise_problems(report: Mapping[str, Any]) -> None:
    """Raises BadDataError for too many bad records, CheckFailed for other problems."""
    if report["problems"]:
        kind = errors.BadDataError if report["too_bad"] else errors.CheckFailed
        raise kind("\n".join(report["problems"]))


def _sources(experiment: Experiment) -> list[tuple[Source, list[str]]]:
    """Distinct sources with the names of their tasks."""
    sources: list[tuple[Source, list[str]]] = []
    for name, task in experiment.tasks.items():
        names = next((n for source, n in sources if source == task.source), None)
        if names is None:
            sources.append((task.source, [name]))
        else:
            names.append(name)
    return sources


def _check(
    experiment: Experiment, source: Source, tasks: list[str], split: str, count: int, folder: Path
) -> Found:
    used = [batches.used_streams(experiment.tasks[name]) for name in tasks]
    streams = tuple(dict.fromkeys(name for names in used for name in names))
    there = source.open(split)
    rows = np.unique(np.linspace(0, len(there) - 1, min(count, len(there))).round().astype(int))
    examples: dict[int, dict[str, Any]] = {}
    for row in rows.tolist():
        try:
            examples[row] = there[row]
        except BadRecord:
            examples[row] = {}  # the reader counts it as bad
    learned = workdir_lib.learned(experiment.warm_start) if experiment.warm_start else {}
    modalities = {
        name: _ready(
            name,
            experiment.modalities[name],
            functools.partial(values_of, source, split, records=there, rows=rows.tolist()),
            learned.get(name, folder / name),
        )
        for name in streams
    }
    reader = Reader(
        source=source,
        split=split,
        modalities=modalities,
        vocabulary=Vocabulary(tuple(m.spec(name) for name, m in modalities.items())),
        max_bad_fraction=1.0,
    )
    bad: dict[str, list[str]] = collections.defaultdict(list)
    details: dict[str, str] = {}
    good: dict[int, dict[str, Piece | None]] = {}
    for row in examples:
        try:
            good[row] = reader.read(row, streams).pieces
        except BadRecord as error:
            bad[error.reason].append(key_of(there, row))
            details.setdefault(error.reason, error.detail)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "source": type(source).__name__,
        "tasks": tasks,
        "split": split,
        "records": len(there),
        "read": len(rows),
        "bad": dict(bad),
        "details": details,
        "streams": {
            name: _stream(modalities[name], name, examples, good) for name in streams
        },
        "cards": [
            _card(key_of(there, row), examples[row], pieces, modalities, folder / str(row))
            for row, pieces in list(good.items())[:SHOWN]
        ],
    }  # fmt: skip


def _ready(name: str, modality: Modality, values: Callable, folder: Any) -> Modality:
    return modality.fit(lambda: values(name=modality.field or name), folder)


def _stream(
    modality: Modality, name: str, examples: Mapping[int, Any], good: Mapping[int, Any]
) -> Found:
    """How often a stream is present, its raw values in words, and its lengths in tokens."""
    pieces = [p[name] for p in good.values() if p[name] is not None]
    raw = [examples[row][modality.field or name] for row, p in good.items() if p[name] is not None]
    kinds = collections.Counter(_kind(value) for value in raw)
    tokens = [piece.length for piece in pieces]
    spec = modality.spec(name)
    summary: Found = {
        "present": len(pieces),
        "values": [f"{n} x {kind}" for kind, n in kinds.most_common(4)],
        "shape": [spec.max_tokens, spec.width] if spec.width else [spec.max_tokens],
        "cut": sum(piece.num_cut > 0 for piece in pieces),
    }
    if tokens:
        least, most, mean = min(tokens), max(tokens), round(float(np.mean(tokens)), 1)
        summary["tokens"] = {"min": least, "mean": mean, "max": most}
    return summary


def _kind(value: Any) -> str:
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape if value.ndim > 1 else (value.ndim and '(n,)')}"
    return type(value).__name__


def _problems(checked: Sequence[Found], allowed: float) -> tuple[list[str], bool]:
    problems, too_bad = [], False
    for source in checked:
        who = f"Source {source['source']}, split {source['split']!r}"
        num_bad = sum(map(len, source["bad"].values()))
        if num_bad > allowed * source["read"]:
            too_bad = True
            problems.append(
                f"{who}: {num_bad} of {source['read']} records are bad, more than"
                f" max_bad_fraction={allowed:g} allows: {'; '.join(_bad(source))}."
            )
        elif not source["read"]:
            problems.append(f"{who}: it has no record.")
        for name, stream in source["streams"].items():
            if not stream["present"] and num_bad < source["read"]:
                problems.append(f"{who}: no record read has the stream {name!r}; check fields.")
    return problems, too_bad


def _bad(source: Found) -> Iterator[str]:
    for reason, keys in source["bad"].items():
        more = ", ..." if len(keys) > NAMED else ""
        yield f"{reason} in {', '.join(keys[:NAMED])}{more} ({source['details'][reason]})"


def text(report: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = []
    for source in report["sources"]:
        num_bad = sum(map(len, source["bad"].values()))
        lines.append(
            f"{source['source']}, split {source['split']}: {source['records']} records,"
            f" {source['read']} read, {num_bad} bad   ({', '.join(source['tasks'])})"
        )
        for name, cells in _cells(source).items():
            lines.append(f"  {name:12} " + "   ".join(cells))
        lines += [f"  bad: {line}" for line in _bad(source)]
    return console.visible("\n".join([*lines, *([report["path"]] if report["path"] else [])]))


def _cells(source: Found) -> dict[str, list[str]]:
    """Presence, raw values, shape, tokens and cuts of each stream, as text."""
    cells = {}
    for name, s in source["streams"].items():
        tokens = s.get("tokens")
        lengths = "{min} to {max} tokens, mean {mean}".format(**tokens) if tokens else "no tokens"
        shape = " x ".join(map(str, s["shape"]))
        cut = f"{s['cut']} cut" if s["cut"] else "none cut"
        there = f"in {s['present']} of {source['read']}"
        cells[name] = [there, ", ".join(s["values"]) or "-", f"room {shape}", lengths, cut]
    return cells


# --------------------------------------------------------------------------- the page


def _card(
    key: str,
    example: Mapping[str, Any],
    pieces: Mapping[str, Piece | None],
    modalities: Mapping[str, Modality],
    folder: Path,
) -> str:
    """A record as the model gets it."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {}
    notes = {}
    for name, piece in pieces.items():
        if piece is None:
            continue
        modality, notes[name] = modalities[name], f"{name}, {piece.length} tokens"
        try:
            values[name] = modality.write(modality.decode(piece), folder / name)
        except (ValueError, NotImplementedError):  # not shown: its size only
            values[name] = f"{piece.length} tokens"
        if changed := modality.adapted(example[modality.field or name]):
            notes[name] += f"; {changed}"
    shape = gallery.picture_shape(values.values())
    shown = "".join(
        f'{gallery.show(name, value, shape)}<p class="soft">{frame.escape(notes[name])}</p>'
        for name, value in values.items()
    )
    return gallery.card(shown, frame.escape(key))


def _page(name: str, checked: Sequence[Found]) -> str:
    blocks = []
    for source in checked:
        heads = "".join(f'<th scope="col">{h}</th>' for h in HEADS)
        rows = "".join(
            f'<tr><th scope="row">{frame.escape(stream)}</th>'
            + "".join(f"<td>{frame.escape(cell)}</td>" for cell in cells) + "</tr>"
            for stream, cells in _cells(source).items()
        )  # fmt: skip
        bad = "".join(f"<li>{frame.escape(line)}</li>" for line in _bad(source)) or "<li>none</li>"
        title = f"{source['source']}, split {source['split']}"
        facts = (
            f"{source['records']} records, {source['read']} read, for {', '.join(source['tasks'])}"
        )
        blocks.append(
            f'<section><h2>{frame.escape(title)}</h2><p class="soft">{frame.escape(facts)}</p>'
            '<div class="blocks"><div class="scroll card"><table class="scores">'
            f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
            f'<div class="card"><h3>Bad records</h3><ul>{bad}</ul></div><div class="gallery">'
            f"{gallery.cell('As the model gets them', source['cards'])}</div></div></section>"
        )
    return frame.page("data check", name, "".join(blocks))
