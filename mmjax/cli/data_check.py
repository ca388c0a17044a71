"""Data check: statistics of what a model reads from each source, sizes that fit, and a page."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from mmjax import errors, files
from mmjax.cli import data_reading, data_showing, data_sizing
from mmjax.cli.data_reading import Reading
from mmjax.cli.data_showing import text
from mmjax.data import batches, measure, proposal
from mmjax.data.reader import most_bad, values_of
from mmjax.data.source import Source
from mmjax.experiment import Experiment
from mmjax.modalities.modality import Modality

with epy.lazy_imports():
    from mmjax.run import workdir as workdir_lib

__all__ = ["data_check", "raise_problems", "text"]

FIT = 10_000  # records that pieces of text are learned from
REPEATED = 0.5  # share of a split that is also in another, from which on its scores say nothing
Found = dict[str, Any]


def data_check(
    experiment: Experiment, out: str | Path | None = None, records: int | None = None
) -> dict[str, Any]:
    """Reads all records of all splits of every source.

    Tokenizers come from the run that `init` names. Untrained text tokenizers are trained on a part
    of the train split, so token counts of text only approximate those of the run.

    Args:
      out: HTML file to write: images, sounds and texts after encoding and decoding.
      records: number of records of each split, evenly spaced; None = all.

    Returns:
      `sources`, an entry for each split of each source: size, streams (shapes, sizes, tokens,
      padding), bad records by reason, complete samples by task, copies, and what is also in another
      split; `proposed` sizes, `costs`, `warnings` and `problems`: lines; `too_bad`: whether the
      share of bad records is one of the problems.

    Raises ValueError for a source that cannot be opened.
    """
    if records is not None and records < 1:
        raise ValueError(f"data_check: records={records} reads nothing; use 1 or more.")
    report: dict[str, Any] = {key: [] for key in ("sources", "proposed", "costs", "warnings")}
    report |= {"problems": [], "too_bad": False, "path": str(out) if out is not None else ""}
    cards: list[list[str]] = []
    folder = Path(tempfile.mkdtemp(prefix="mmjax_check_"))
    try:
        for number, (source, tasks) in enumerate(_sources(experiment)):
            readings = _readings(experiment, source, tasks, records, folder / str(number))
            _judge(experiment, source, tasks, readings, report)
            for reading in readings.values() if out is not None else ():
                cards.append(_cards(reading, folder / f"{number}_{reading.split}"))
        if out is not None:
            target = files.given(out)
            files.make_folder(target.parent)
            with files.replacing(target) as partial:
                page = data_showing.page(experiment.name, report, cards)
                partial.write_text(page, encoding="utf-8")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
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


# ------------------------------------------------------------------------------ reading


def _readings(
    experiment: Experiment, source: Source, tasks: list[str], most: int | None, folder: Path
) -> dict[str, Reading]:
    """Every split, that to train on first."""
    train = experiment.data.train_split
    used = [batches.used_streams(experiment.tasks[name]) for name in tasks]
    names = dict.fromkeys(name for streams in used for name in streams)
    learned = workdir_lib.learned(experiment.warm_start) if experiment.warm_start else {}
    there = source.open(train)
    rows = measure.evenly(len(there), min(FIT, most or FIT))
    modalities: dict[str, Modality] = {}
    for name in names:  # those of a run may lie in a bucket
        modality = experiment.modalities[name]
        field = modality.field or name
        values = functools.partial(values_of, source, train, field, records=there, rows=rows)
        place: Any = learned.get(name, folder / name)
        modalities[name] = modality.fit(values, place)
    splits = dict.fromkeys((train, *source.splits()))
    return {s: data_reading.read(source, s, modalities, most, s == train) for s in splits}


def _cards(reading: Reading, folder: Path) -> list[str]:
    shown = enumerate(reading.shown.items())
    return [
        data_showing.card(key, example, pieces, reading.modalities, folder / str(number))
        for number, (key, (example, pieces)) in shown
    ]


# ------------------------------------------------------------------------------ judging


def _judge(
    experiment: Experiment,
    source: Source,
    tasks: list[str],
    readings: Mapping[str, Reading],
    report: dict[str, Any],
) -> None:
    """Adds what was found of a source to the report."""
    measured = {s: r.measuring.result(s, r.records) for s, r in readings.items()}
    leaks = {split: list(_leaks(split, readings)) for split in readings}
    for split, reading in readings.items():
        found = _found(experiment, source, tasks, reading, measured[split])
        found["leaks"] = leaks[split]
        report["sources"].append(found)
        problems, too_bad = _problems(experiment, found, reading, measured[split])
        report["problems"] += problems
        report["too_bad"] |= too_bad
    train = readings[experiment.data.train_split]
    if not train.measuring.present:
        return
    made = proposal.propose(measured[train.split])
    who = f"Source {type(source).__name__}"
    report["problems"] += [f"{who}: {text}." for text in made.problems]
    report["warnings"] += [f"{who}: {text}" for text in made.warnings]
    report["proposed"] += data_sizing.lines(experiment, tasks, made)
    report["costs"] += data_sizing.costs(experiment, tasks, made, train)


def _found(
    experiment: Experiment,
    source: Source,
    tasks: list[str],
    reading: Reading,
    measured: measure.Measured,
) -> Found:
    known = measured.streams
    return {
        "source": type(source).__name__,
        "tasks": tasks,
        "split": reading.split,
        "records": measured.records,
        "read": measured.read,
        "bad": reading.bad,
        "num_bad": reading.num_bad.total(),
        "details": reading.details,
        "streams": {name: _stream(reading, name, known[name]) for name in reading.streams},
        "together": measured.together,
        "complete": {n: measured.complete(experiment.tasks[n].is_complete) for n in tasks},
        "copies": {
            name: {"count": s.present - s.different, "of": s.present, "names": list(s.copies)}
            for name, s in known.items()
            if s.different < s.present
        },
    }  # fmt: skip


def _stream(reading: Reading, name: str, measured: measure.Stream) -> Found:
    """How often a stream is present, its raw values in words, its sizes, and lengths in tokens."""
    found, spec = reading.streams[name], reading.modalities[name].spec(name)
    summary: Found = {
        "present": len(found.tokens),
        "values": [f"{n} x {kind}" for kind, n in found.kinds.most_common(4)],
        "shape": [spec.max_tokens, spec.width] if spec.width else [spec.max_tokens],
        "cut": found.cut,
        "sizes": {
            size: {key: round(value, 4) for key, value in dataclasses.asdict(q).items()}
            for size, q in measured.sizes.items()
            if size != "filled"
        },
        "scripts": measured.scripts,
        "languages": measured.languages,
    }
    if len(found.tokens):
        tokens = measure.Lengths.of(found.tokens)
        least, most, mean = int(tokens.min), int(tokens.max), round(float(np.mean(found.tokens)), 1)
        summary["tokens"] = {"min": least, "mean": mean, "p95": int(tokens.p95), "max": most}
        summary["padding"] = [round(share, 4) for share in data_reading.padding(reading, name)]
    return summary


def _leaks(split: str, readings: Mapping[str, Reading]) -> Iterator[Found]:
    """What a split shares with those before it."""
    for other in itertools.takewhile(lambda name: name != split, readings):
        one, known = readings[split], readings[other]
        for name in (measure.WHOLE, *one.streams):
            pair = measure.shared(one.measuring, known.measuring, name, one.records, known.records)
            if pair.count:
                yield {"what": name, "split": other, **dataclasses.asdict(pair)}


def _is_needed(experiment: Experiment, split: str) -> bool:
    """Whether a run reads the split."""
    is_evaluated = split == experiment.data.eval_split and bool(experiment.evaluators)
    return is_evaluated or split == experiment.data.train_split


def _problems(
    experiment: Experiment, found: Found, reading: Reading, measured: measure.Measured
) -> tuple[list[str], bool]:
    problems, allowed = [], experiment.guards.allowed_bad
    who = f"Source {found['source']}, split {found['split']!r}"
    num_bad, read = found["num_bad"], found["read"]
    too_bad = num_bad > most_bad(allowed, read)
    if too_bad:
        problems.append(
            f"{who}: {num_bad} of {read} records are bad, more than"
            f" max_bad_fraction={allowed:g} allows: {'; '.join(data_showing.bad(found))}."
        )
    elif not read and _is_needed(experiment, found["split"]):
        problems.append(f"{who}: it has no record.")
    is_train = found["split"] == experiment.data.train_split
    for name, stream in found["streams"].items() if is_train else ():
        if not stream["present"] and num_bad < read:
            problems.append(f"{who}: no record read has the stream {name!r}; check fields.")
    for task, count in found["complete"].items() if is_train and num_bad < read else ():
        if not count:
            sets = ", ".join(
                f"{n} with {names or 'none'}" for names, n in measured.together.items()
            )
            config = experiment.tasks[task]
            problems.append(
                f"{who}: task {task!r} has no complete sample, and would train on nothing: of"
                f" inputs={config.inputs}, targets={config.targets} {read} records have: {sets}."
                " Bring them together in one record, or leave this task out."
            )
    for leak in found["leaks"]:
        if leak["what"] == measure.WHOLE and leak["count"] > REPEATED * leak["of"]:
            pairs = ", ".join(f"{a} = {b}" for a, b in leak["names"])
            problems.append(
                f"{who}: {leak['count']} of {leak['of']} records repeat those of"
                f" {leak['split']!r} ({pairs}): scores on them say nothing; hold other records out."
            )
    return problems, too_bad
