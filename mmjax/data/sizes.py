"""Sizes that a recipe takes from the data: measured at the first start, and written down.

A recipe asks `of_source`. What it gets it keeps in `Experiment.sizes`, so that it is part of the
run's config.json; a resume (`mmjax.data.started`) takes it from there and measures nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mmjax import config, console, files
from mmjax.config import ranges
from mmjax.config.error import ConfigError
from mmjax.data import measure, proposal, started
from mmjax.data.files import Files
from mmjax.data.hugging_face import HuggingFace
from mmjax.data.source import BadRecord
from mmjax.data.tfds import TFDS
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.label import Label
from mmjax.modalities.text import Text
from mmjax.processes import compile_cache

__all__ = ["Sizes", "of_source"]

MOST = 2000  # records that are looked at
RULES = 2  # of the proposal; others make sizes that were kept before void
KINDS = {"image": Image(), "text": Text(), "audio": Audio()}
CLASSES = 10_000  # numbers of classes that a label may have
SHARE = 0.01  # of the records, in which two modalities must meet to be a pair to train on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a recipe takes from the data; the defaults are for data that are not there to measure.

    Fields:
      size, patch, resize: of pictures. max_tokens, vocab_size: of texts. seconds: of sounds.
      batch_size, total_steps: of the run.
      classes: names of the classes of a label, in the order of their numbers.
      pairs: modalities that records have both of. records: of the split to train on. held_out: of
        the split to evaluate on.
    """

    size: tuple[ranges.Count, ranges.Count] = (64, 64)
    patch: ranges.Count = 8
    resize: str = "crop"
    max_tokens: ranges.Count = 64
    vocab_size: ranges.Count = 8000
    seconds: ranges.Positive = 5.0
    batch_size: ranges.Count = 64
    total_steps: ranges.Natural = 10_000
    classes: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = (("image", "text"),)
    records: ranges.Natural = 0
    held_out: ranges.Natural = 1

    def __post_init__(self):
        ranges.check(self)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that meet another one in some record."""
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair))


def _stored(workdir: str) -> Sizes | None:
    """What the run in a workdir was started with, if it has a checkpoint to go on from: a config
    that is made again for it is the same, whatever has become of the data."""
    if not workdir:
        return None
    folder = files.given(workdir)
    try:
        if not files.children(folder / "checkpoints", "[0-9]*"):
            return None
        document = files.read_json(folder / "config.json")
        return _parsed(document["config"].get("sizes"))
    except (OSError, LookupError, AttributeError, files.DamagedFile):
        return None  # a start that has nothing to resume from says so


def _parsed(tree: Any) -> Sizes | None:
    """Sizes from JSON; None for anything else."""
    with contextlib.suppress(ConfigError, ValueError, TypeError):
        found = config.from_json(tree, {f"{__name__}:Sizes": Sizes}) if tree else None
        return found if isinstance(found, Sizes) else None
    return None


def of_source(source: Files) -> Sizes:
    """Sizes for the pictures, texts and sounds of a source, by a part of its records.

    The same data are measured once: the result is kept in your own cache folder. Data that are not
    there get the default sizes, as do those of a bucket where nothing is about to read them.

    Raises ConfigError for data that nothing can be learned from.
    """
    if (known := _stored(started.workdir())) is not None:
        return known
    say = os.environ.get("JAX_PROCESS_ID", "0") == "0"
    in_bucket = any(map(files.is_remote, (source.path, *source.files.values())))
    if in_bucket and not started.reads_data():
        console.say(
            "data in a bucket: sizes are the default ones until `mmjax train` or `mmjax data check`"
            " copies and measures them", say,
        )  # fmt: skip
        return Sizes()
    try:
        kept = _kept(source)
    except (ValueError, OSError):  # absent or damaged: the run itself says why
        return Sizes()
    made, warnings = _read(kept) if kept is not None else (None, [])
    if made is not None:
        console.say(f"sizes: as measured before ({kept})", say)
    else:
        made, lines, warnings = _measured(source)
        for line in lines:
            console.say(line, say)
        if kept is not None:
            with contextlib.suppress(OSError), files.replacing(kept) as partial:
                tree = {"sizes": config.to_json(made), "warnings": warnings}
                partial.write_text(json.dumps(tree))
    for line in warnings:
        console.say(f"  warning: {line}", say)
    return made


def _kept(source: Files) -> Path | None:
    """Where sizes for these data are kept; None = nowhere."""
    about = f"{RULES} {source.fingerprint()}"
    try:
        folder = compile_cache.own_folder("sizes")
    except compile_cache.Refused:
        return None
    return folder / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.json"


def _read(path: Path) -> tuple[Sizes | None, list[str]]:
    """Sizes and warnings that were kept; None if there are none."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        tree = json.loads(path.read_text())
        return _parsed(tree["sizes"]), list(map(str, tree["warnings"]))
    return None, []


def _measured(source: Files) -> tuple[Sizes, list[str], list[str]]:
    """Sizes, what to say about them, and warnings."""
    known = {name: kind for name, kind in KINDS.items() if name in source.fields}
    splits = source.splits()
    split = "train" if "train" in splits else splits[0]
    classes = _classes(source) if "label" in source.fields else ()
    if classes:
        known["label"] = Label(names=classes)
    train = measure.measure(source, split, known, MOST)
    made = proposal.propose(train)
    fields: dict[str, Any] = {}
    for choice in (*made.modalities.values(), made.run):
        fields |= choice.fields
    pairs = _pairs(source, train, made, list(known))
    held_out = _held_out(source, split)
    sizes = Sizes(pairs=pairs, records=train.records, held_out=held_out, classes=classes, **fields)
    lines = [f"{_name(source)}: sizes by {train.read:,} of {train.records:,} records of {split}"]
    for name, choice in {**made.modalities, "run": made.run}.items():
        given = ", ".join(f"{key}={value}" for key, value in choice.fields.items())
        lines.append(f"  {name}: {given} ({choice.why})")
    warnings = [*made.warnings, *(f"{problem}; it is left out" for problem in made.problems)]
    if not sizes.held_out:
        warnings.append("no record is held out, so nothing is evaluated; add a folder or file val")
    return sizes, lines, warnings


def _name(source: Files) -> str:
    return source.path or ", ".join(source.files.values())


def _pairs(
    source: Files, train: measure.Measured, made: proposal.Proposal, known: list[str]
) -> tuple[tuple[str, str], ...]:
    """Modalities that differ and meet in records. Raises ConfigError if none do, with counts."""
    names = [name for name in known if name not in made.constant]
    both = {
        (b, a) if b == "audio" else (a, b): train.complete(
            lambda there, a=a, b=b: {a, b} <= {*there}
        )
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    least = SHARE * (train.read - train.bad)
    pairs = tuple(pair for pair, count in both.items() if count and count >= least)
    if not pairs and made.problems:
        raise ConfigError(f"{_name(source)}: {'; '.join(made.problems)}.")
    if not pairs:
        counts = ", ".join(f"{n} with {names or 'nothing'}" for names, n in train.together.items())
        raise ConfigError(
            f"{_name(source)}: no two kinds of data meet in a record: of {train.read} records"
            f" {counts}, {train.bad} bad. Files of one record share their name: 1.jpg, 1.txt."
        )
    return pairs


def _classes(source: Files) -> tuple[str, ...]:
    """Names of the classes that are stored with the data; without names, their numbers, for which
    every record is read."""
    if isinstance(source, (TFDS, HuggingFace)):
        with contextlib.suppress(ValueError):
            return source.class_names(source.fields["label"])
    alone = dataclasses.replace(source, fields={"label": source.fields["label"]}, required=())
    most = -1
    for split in source.splits():
        records = alone.open(split)
        for row in range(len(records)):
            with contextlib.suppress(BadRecord, TypeError, ValueError):
                most = max(most, int(records[row]["label"]))
    if not 0 <= most < CLASSES:
        raise ConfigError(
            f"{_name(source)}: {source.fields['label']} is no number of a class: the largest is"
            f" {most}; classes are counted from 0, to {CLASSES - 1:,} at most."
        )
    return tuple(map(str, range(most + 1)))


def _held_out(source: Files, split: str) -> int:
    from mmjax.data import found

    try:
        return len(source.open(found.eval_split(source)))
    except ValueError:
        return 0
