"""Job: what is to be tokenized, cut into units of work that any process can do alone.

DIR/<part>/job.json   all that the tokens depend on; another job in the same folder is refused
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mmjax import config, files
from mmjax.config.error import ConfigError, nearest
from mmjax.data import started
from mmjax.data.batches import used_streams
from mmjax.data.source import Records, Source
from mmjax.data.task import Task
from mmjax.experiment import Experiment
from mmjax.modalities.modality import Modality
from mmjax.run import workdir
from mmjax.typing import TokenSpec, Vocabulary

FORMAT = 1
JOB = "job.json"
FIRST = "tokens"  # the part that is written first
SHARD = 10_000  # examples of a shard, at most


class Unit(NamedTuple):
    """One shard: successive records of a split, all of one input file."""

    split: str
    number: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The tokenization of one source; picklable, with fitted modalities.

    Fields:
      task: whose source, modalities and augmentations are taken.
      out: DIR. part: its folder in there. streams: that it holds.
      crops: variations of each training example, if the task augments.
      ends: split -> number of the record after each unit.
    """

    experiment: Experiment
    task: str
    out: str
    part: str
    streams: tuple[str, ...]
    crops: int
    ends: dict[str, tuple[int, ...]]

    @property
    def source(self) -> Source:
        """The raw source."""
        return self.experiment.tasks[self.task].source

    def records(self, split: str) -> Records:
        """The raw records of a split, opened once in a process: a source may have many files."""
        if split not in self._opened:
            self._opened[split] = self.source.open(split)
        return self._opened[split]

    @functools.cached_property
    def _opened(self) -> dict[str, Records]:
        return {}

    def __getstate__(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def augments(self) -> dict[str, Any]:
        """Augmentations by stream, of the training split."""
        given = self.experiment.tasks[self.task].augment
        return {name: given[name] for name in self.streams if name in given}

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Of the streams of this part alone."""
        modalities = self.experiment.modalities
        return Vocabulary(tuple(modalities[name].spec(name) for name in self.streams))

    def specs(self) -> dict[str, TokenSpec]:
        """By stream."""
        return {spec.name: spec for spec in self.vocabulary.specs}

    def crops_of(self, split: str) -> int:
        """Variations of an example of a split; 0 = it is tokenized as it is."""
        is_train = split == self.experiment.data.train_split
        return self.crops if is_train and self.augments else 0

    def units(self) -> list[Unit]:
        """All shards, in order."""
        found = []
        for split, ends in self.ends.items():
            starts = (0, *ends)[:-1]
            found += [
                Unit(split, i, a, b) for i, (a, b) in enumerate(zip(starts, ends, strict=True))
            ]
        return found

    def folder(self) -> Any:
        """Of the part."""
        return epath.Path(self.out) / self.part

    def about(self) -> dict[str, Any]:
        """job.json: all that the content of the shards depends on."""
        experiment = self.experiment
        tokens = config.identity(experiment, "tokens")  # without fields that change no token
        varied = config.short_names(config.to_json(self.augments))
        return {
            "format": FORMAT,
            "source": self.source.fingerprint(),
            "streams": {
                name: {
                    "spec": dataclasses.asdict(spec),
                    "modality": {
                        path.removeprefix(f"modalities.{name}"): value
                        for path, value in tokens.items()
                        if path.startswith((f"modalities.{name}.", f"modalities.{name}@"))
                    },
                }
                for name, spec in self.specs().items()
            },
            "augment": varied if self.crops else {},
            "crops": self.crops if self.augments else 0,
            "seed": experiment.seed if self.augments and self.crops else 0,
            "train_split": experiment.data.train_split if self.augments and self.crops else "",
            "splits": {split: list(ends) for split, ends in self.ends.items()},
        }

    def open_folder(self) -> None:
        """Writes job.json, or checks that it is this job. Raises ConfigError for another one."""
        path, about = self.folder() / JOB, json.loads(json.dumps(self.about()))
        if not files.exists(path):
            files.make_folder(path.parent)
            files.write_json(path, about)
            return
        try:
            known = files.read_json(path)
        except files.DamagedFile as error:
            raise ConfigError(
                f"--out {self.out}: {path} is damaged ({error}); delete {path.parent} to begin"
                " anew."
            ) from error
        different = [name for name in about if known.get(name) != about[name]]
        if different:
            more = "".join(f"; {line}" for line in _differences(known, about, different))
            raise ConfigError(
                f"--out {self.out}: holds the tokens of another job ({', '.join(different)}"
                f" differ{more}); name another folder, or the config that it was made with."
            )


def _differences(known: dict[str, Any], about: dict[str, Any], names: list[str]) -> list[str]:
    """What differs, where a line can say it."""
    lines = []
    if "streams" in names:
        was, now = known.get("streams") or {}, about["streams"]
        for name in sorted({*was, *now}):
            if (name in was) != (name in now):
                lines.append(f"stream {name!r} is only in {'it' if name in was else 'the config'}")
                continue
            old, new = was[name]["spec"]["fingerprint"], now[name]["spec"]["fingerprint"]
            if old != new:
                lines.append(f"tokenizer of {name!r} is {new[:12]}, there {old[:12]}")
            elif was[name] != now[name]:
                lines.append(f"stream {name!r} has another modality")
    lines += [
        f"{n}={about[n]!r:.40}, there {known.get(n)!r:.40}" for n in names if n in ("crops", "seed")
    ]
    return lines


def make(
    experiment: Experiment,
    out: Any,
    *,
    task: str = "",
    splits: Sequence[str] = (),
    add: Sequence[str] = (),
    crops: int = 0,
    shard_examples: int = SHARD,
) -> Job:
    """The job of a config: fits tokenizers in DIR/tokenizers, and cuts the source into units.

    Args:
      task: whose source is tokenized; needed where the tasks have several.
      splits: of the source; empty = all.
      add: streams of a further part of a set that is there, with the same records; empty = all
        that the tasks of this source read.
      crops: variations of each training example by the augmentations of the task, drawn once, and
        alike for streams of one `like`.
      shard_examples: of an output shard, at most; an input file makes at least one.

    Raises:
      ConfigError: nothing to tokenize, or several sources; names what there is.
    """
    folder = files.given(out)
    name = task or _only_task(experiment)
    if name not in experiment.tasks:
        raise ConfigError(f"--task {name!r} does not exist{nearest(name, experiment.tasks)}")
    chosen = experiment.tasks[name]
    alike = [t for t in experiment.tasks.values() if t.source == chosen.source]
    streams = dict.fromkeys(n for t in alike for n in used_streams(t))
    if chosen.source.held():
        raise ConfigError(f"Task {name!r}: its source holds tokens already; give the raw one.")
    for stream in add:
        if stream not in experiment.modalities:
            raise ConfigError(
                f"--add {stream!r} is no modality{nearest(stream, experiment.modalities)}"
            )
    _check_crops(chosen, crops)
    wanted = tuple(add or streams)
    with started.tokenizing():
        fitted = workdir.fit_modalities(
            experiment, tuple(dict.fromkeys((*streams, *wanted))), folder
        )
        _check_tokenizers(experiment, fitted, folder)
        ready = dataclasses.replace(experiment, modalities={**experiment.modalities, **fitted})
    job = Job(
        experiment=ready, task=name, out=str(folder), part="+".join(add) if add else FIRST,
        streams=wanted, crops=crops, ends={},
    )  # fmt: skip
    there = chosen.source.splits()
    for split in splits:
        if split not in there:
            raise ConfigError(f"--splits {split}: there are {', '.join(there)}.")
    ends = {split: _ends(chosen.source, split, shard_examples) for split in splits or there}
    return dataclasses.replace(job, ends=ends)


def _check_tokenizers(experiment: Experiment, fitted: Mapping[str, Modality], folder: Any) -> None:
    """Raises ConfigError where the config names another tokenizer than DIR has a copy of."""
    for name, modality in fitted.items():
        given, have = (
            experiment.modalities[name].given_fingerprint(),
            modality.spec(name).fingerprint,
        )
        if given not in ("", have):
            raise ConfigError(
                f"--out {folder}: its tokenizer of {name!r} is {have[:12]}, but"
                f" modalities[{name!r}] names {given[:12]}; use the same, or another folder."
            )


def _only_task(experiment: Experiment) -> str:
    sources: list[tuple[str, Source]] = []
    for name, task in experiment.tasks.items():
        if all(task.source != source for _, source in sources):
            sources.append((name, task.source))
    if len(sources) > 1:
        names = ", ".join(f"{name} ({type(source).__name__})" for name, source in sources)
        raise ConfigError(
            f"CONFIG has {len(sources)} sources: {names}; name one by its task: --task"
            f" {sources[0][0]}, each into a folder of its own."
        )
    return sources[0][0]


def _check_crops(task: Task, crops: int) -> None:
    if crops < 0:
        raise ConfigError(f"--crops {crops} must be 1 or more.")
    if crops and not task.augment:
        raise ConfigError(
            f"--crops {crops}, but the task augments nothing; give it augment={{...}}, such as"
            " Pictures() for pictures, or leave --crops out."
        )
    if task.augment and not crops:
        raise ConfigError(
            f"The task augments {', '.join(task.augment)}; say how many variations of each example"
            " are tokenized: --crops 10."
        )


def _ends(source: Source, split: str, shard: int) -> tuple[int, ...]:
    """Ends of the units of a split: those of its files, of which large ones are cut evenly."""
    if shard < 1:
        raise ConfigError(f"--shard-examples {shard} must be 1 or more.")
    records = source.open(split)
    file_ends = getattr(records, "file_ends", None)
    whole, ends = file_ends() if file_ends else [len(records)], []
    for start, stop in zip((0, *whole[:-1]), whole, strict=True):
        parts = max(1, -(-(stop - start) // shard))
        ends += [start + (stop - start) * i // parts for i in range(1, parts + 1)]
    return tuple(int(end) for end in np.asarray(ends) if end)
