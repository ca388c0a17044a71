"""Generation from every modality to every other, scored by judges trained on real data only."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.evaluate import judges as judges_lib
from mmjax.evaluate import samples as samples_lib
from mmjax.evaluate.judges import Judge
from mmjax.experiment import Evaluator
from mmjax.generate import Decoding
from mmjax.modalities.modality import Example, Modality

__all__ = ["Generation"]

GUESSES = 16  # values that are tried as constant answers
SHIFTS = (1, 7, 23, 41)  # offsets between answers and examples, for the chance level


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(Evaluator):
    """Scores generated values for every pair of a given and a wanted modality.

    Modalities are named by the field of their raw value; the input is its continuous stream if
    there is one, the output its codes. Metrics: `<given>_to_<wanted>_<metric of the judge>`, with
    `_<slice>` for the examples' slices. References in place of a given modality: `real`, the
    judge's score of the real values; `codes`, of the real values encoded and decoded; `trivial`, of
    the best constant answer (the mean, the most frequent). A view with a folder writes samples to
    `samples/<step>/`.

    Fields:
      judges: by modality; all of them are both given and wanted; two or more.
      cells: `<given>_to_<wanted>` to evaluate; empty = all pairs.
      num_examples: number of examples, from the start of the split, by cell; "*" = all other cells.
      splits: given modality -> split of its cells, where `{split}` stands for the evaluated one;
        others use the evaluated split.
      decodings: by wanted modality; others are decoded greedily in one step.
      through: `<given>_to_<wanted>` -> modalities that are generated first and added to the input.
      num_samples: samples written for each cell.
    """

    judges: dict[str, Judge] = dataclasses.field(default_factory=dict)
    cells: tuple[str, ...] = ()
    num_examples: dict[str, ranges.Count] = dataclasses.field(default_factory=lambda: {"*": 100})
    splits: dict[str, str] = dataclasses.field(default_factory=dict)
    decodings: dict[str, Decoding] = dataclasses.field(default_factory=dict)
    through: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    num_samples: ranges.Natural = 4

    def __post_init__(self):
        super().__post_init__()
        if len(self.judges) < 2:
            raise ValueError(
                f"Generation: judges={self.judges} names fewer than two modalities, but cells go"
                " from one to another; give each its judge, such as judges={'mask': MaskIoU(),"
                " 'boxes': BoxIoU()}."
            )
        known = [f"{a}_to_{b}" for a, b in itertools.permutations(self.judges, 2)]
        asked = {"cells": self.cells, "num_examples": self.num_examples, "through": self.through}
        for field, names in asked.items():
            for name in names:
                if name not in known and not (field == "num_examples" and name == "*"):
                    raise ValueError(
                        f"Generation: {field} names {name!r}, which is no pair of two modalities"
                        f" with judges; such as {known[:2]}."
                    )

    def check(self, view):
        read = functools.cache(view.examples)
        has_all = lambda e, streams: all(view.has(s, e) for s in streams)
        filled: dict[str, bool] = {}
        for given, wanted in self._pairs():
            streams = [raw_stream(view, name) for name in (given, wanted)]
            split, count = self._records(view, given, wanted)
            is_filled = any(has_all(e, streams) for e in read(split, count))
            if self.cells and not is_filled:
                raise ValueError(
                    f"Generation: cells names {given}_to_{wanted}, but none of the first {count}"
                    f" records of split {split!r} has both; name other cells, or more num_examples."
                )
            filled[wanted] = is_filled or filled.get(wanted, False)
        for wanted, is_filled in filled.items():
            if not is_filled:
                raise ValueError(
                    f"Generation: judges names {wanted!r}, but none of the records that are"
                    " evaluated has it beside what is given; leave its judge out, or raise"
                    " num_examples."
                )
            self._score(view, wanted)

    def _pairs(self) -> list[tuple[str, str]]:
        pairs = itertools.permutations(self.judges, 2)
        return [(a, b) for a, b in pairs if not self.cells or f"{a}_to_{b}" in self.cells]

    def run(self, view):
        metrics: dict[str, float] = {}
        writer = _writer(view) if self.num_samples else None
        pairs = self._pairs()
        scores = {b: self._score(view, b) for b in dict.fromkeys(b for _, b in pairs)}
        for wanted, score in scores.items():
            self._anchors(view, wanted, score, metrics)
        for given, wanted in pairs:
            examples = self._examples(view, given, wanted)
            if not examples:
                continue
            answers = self._generate(view, given, wanted, examples)
            values = scores[wanted](answers, examples)
            _report(metrics, f"{given}_to_{wanted}_{self.judges[wanted].metric}", examples, values)
            for i in spread(examples, self.num_samples) if writer else ():
                _add(writer, view, given, wanted, examples[i], answers[i], values[i])
        if writer:
            writer.close()
        return metrics

    def baselines(self, view, scores):
        """The best constant answer, which `run` has scored."""
        constant = {}
        for given, wanted in self._pairs():
            end = f"_to_{wanted}_{self.judges[wanted].metric}"
            if given + end in scores and f"trivial{end}" in scores:
                constant[given + end] = scores[f"trivial{end}"]
        return {"constant": constant} if constant else {}

    def chance(self, view):
        """Scores of the real values of other examples."""
        levels = {}
        for wanted, judge in self.judges.items():
            name = f"{wanted}_{judge.metric}"
            levels[name] = (
                self._measured_chance(view, wanted) if judge.chance is None else judge.chance
            )
        return levels

    def _measured_chance(self, view, wanted: str) -> float:
        examples, score = self._examples(view, "", wanted), self._score(view, wanted)
        values = [view.value(raw_stream(view, wanted), e) for e in examples]
        if not examples:
            return 0.0
        return float(np.mean([score(values[s:] + values[:s], examples).mean() for s in SHIFTS]))

    def _score(self, view, wanted: str) -> judges_lib.Score:
        """The judge of a modality, which learns once for all evaluations of a program."""
        modality = view.program.experiment.modalities[raw_stream(view, wanted)]
        judge, kept = self.judges[wanted], view.program.compiled
        key = ("judge", wanted, type(judge).__qualname__, repr(judge), repr(view.source))
        if key not in kept:
            kept[key] = judge.ready(view.source, modality)
        return kept[key]

    def _examples(self, view, given: str, wanted: str) -> list[Example]:
        """The first examples of the split that have both modalities."""
        split, count = self._records(view, given, wanted)
        streams = [raw_stream(view, name) for name in (given, wanted) if name]
        candidates = view.examples(split, count)
        return [e for e in candidates if all(view.has(s, e) for s in streams)]

    def _records(self, view, given: str, wanted: str) -> tuple[str, int]:
        """The split of a cell, and how many of its records are read."""
        count = self.num_examples.get(f"{given}_to_{wanted}", self.num_examples.get("*", 100))
        return self.splits.get(given, "{split}").format(split=view.split), count

    def _generate(self, view, given: str, wanted: str, examples: list[Example]) -> list[Any]:
        from mmjax import generate

        stream, modalities = raw_stream(view, given), view.program.experiment.modalities
        pieces = [{stream: modalities[stream].encode(view.value(stream, e))} for e in examples]
        names = (*self.through.get(f"{given}_to_{wanted}", ()), wanted)
        plan = tuple(
            dataclasses.replace(
                self.decodings.get(n, Decoding(stream="")), stream=code_stream(view, n)
            )
            for n in names
        )
        made = generate.sample(view, pieces, plan, tuple(range(len(examples))))
        last = plan[-1].stream
        return [modalities[last].decode(sample[last]) for sample in made]

    def _anchors(self, view, wanted: str, score: judges_lib.Score, metrics) -> None:
        """Scores of the real values, their codes, and a constant answer."""
        end = f"{wanted}_{self.judges[wanted].metric}"
        stream, coded = raw_stream(view, wanted), code_stream(view, wanted)
        modalities = view.program.experiment.modalities
        examples = self._examples(view, wanted, "")
        if not examples:
            return
        values = [view.value(stream, e) for e in examples]
        back = [_there_and_back(modalities[coded], v) for v in values]
        guesses = constants([_there_and_back(modalities[stream], v) for v in values])
        guessed = [score([guess] * len(values), examples) for guess in guesses]
        found = {"real": score(values, examples), "codes": score(back, examples)}
        found["trivial"] = max(guessed, key=np.mean)
        for name, own in found.items():
            _report(metrics, f"{name}_to_{end}", examples, own, slices=False)


def raw_stream(view, name: str) -> str:
    """The input stream of a raw field: a continuous one if possible."""
    return _stream(view, name, lambda spec: spec.vocab_size == 0)


def code_stream(view, name: str) -> str:
    """The output stream of a raw field: a stream of ids."""
    return _stream(view, name, lambda spec: spec.vocab_size > 0)


def _writer(view) -> samples_lib.Writer | None:
    import jax

    if view.folder is None or jax.process_index():
        return None
    return samples_lib.Writer(view.folder / "samples" / str(view.step))


def _add(writer, view, given: str, wanted: str, example, answer, score) -> None:
    modalities = view.program.experiment.modalities
    asked, output = raw_stream(view, given), modalities[raw_stream(view, wanted)]
    writer.add(
        {given: (modalities[asked], view.value(asked, example))},
        {wanted: (output, answer)},
        score={wanted: round(float(score), 4)},
        note=", ".join(example.get("slices", ())),
    )


def _stream(view, name: str, fits: Callable[[Any], bool]) -> str:
    modalities: Mapping[str, Modality] = view.program.experiment.modalities
    streams = [s for s, m in modalities.items() if name == (m.field or s)]
    if not streams:
        fields = dict.fromkeys(m.field or s for s, m in modalities.items())
        raise ValueError(
            f"Generation: modality {name!r} is not in the model; there are {', '.join(fields)}."
        )
    return next((s for s in streams if fits(modalities[s].spec(s))), streams[0])


def spread(examples: Sequence[Example], count: int) -> list[int]:
    """Indices of at most `count` examples: evenly spaced, balanced over slices, with distinct
    identities if there are enough."""
    slices = [tuple(e.get("slices", ())) for e in examples]
    kinds = list(dict.fromkeys(slices))
    each, chosen = -(-count // max(len(kinds), 1)), []
    for kind in kinds:
        places = [i for i, s in enumerate(slices) if s == kind]
        unlike = {examples[i].get("identity", (i,)): i for i in reversed(places)}
        places = sorted(unlike.values()) if len(unlike) >= each else places
        step = max(len(places) // each, 1)
        chosen += places[step // 2 :: step][:each]
    return sorted(chosen)[:count]


def constants(values: Sequence[Any]) -> list[Any]:
    """Constant answers, of which the best counts: the mean of arrays of one shape, or of ids the
    most frequent, the most frequent text, number or word by name; of others, such as boxes of
    different numbers, some of the values."""
    if isinstance(values[0], str):
        return [_most(values)]
    if isinstance(values[0], Mapping):
        plain = (str, int, float, type(None))  # None = a cell that is missing
        if not all(isinstance(one, plain) for v in values for one in v.values()):
            return list(values[:GUESSES])
        keys = dict.fromkeys(k for v in values for k in v)
        return [{k: _most([v[k] for v in values if k in v]) for k in keys}]
    arrays = [np.asarray(v) for v in values]
    if len({a.shape for a in arrays}) > 1:
        return list(values[:GUESSES])
    stacked = np.stack(arrays)
    if stacked.dtype.kind not in "iu":
        return [np.mean(stacked.astype(np.float32), axis=0)]
    ids, places = np.unique(stacked, return_inverse=True)
    counts = [(places.reshape(stacked.shape) == i).sum(axis=0) for i in range(len(ids))]
    return [ids[np.argmax(counts, axis=0)]]


def _most(values: Sequence[Any]) -> Any:
    return collections.Counter(values).most_common(1)[0][0]


def _there_and_back(modality: Modality, value: Any) -> Any:
    piece = modality.encode(value)
    assert piece is not None
    return modality.decode(piece)


def _report(metrics, name: str, examples, scores: np.ndarray, slices: bool = True) -> None:
    metrics[name] = float(scores.mean())
    for part in sorted({s for e in examples for s in e.get("slices", ())}) if slices else ():
        chosen = np.array([part in e.get("slices", ()) for e in examples])
        metrics[f"{name}_{part}"] = float(scores[chosen].mean())
