"""The evaluators of a run: when they are due, and what becomes of their scores."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from mmjax import console, files
from mmjax.config.error import ConfigError
from mmjax.data.source import BadRecord
from mmjax.parallel import distributed
from mmjax.run import levels, metrics
from mmjax.run import workdir as workdir_lib
from mmjax.run.clock import Clock
from mmjax.run.program import Program
from mmjax.run.stopping import Stopping
from mmjax.run.view import View
from mmjax.step import TrainState

__all__ = ["Evaluations", "left_out"]

SHOWN = 3  # scores of an evaluator that are printed at the end


class Evaluations:
    """The evaluators of an experiment.

    Fields:
      scores: the last ones, by `<evaluator>/<metric>`.
    """

    def __init__(
        self, program: Program, folder: epath.Path, writer: metrics.Writer, clock: Clock, main: bool
    ):
        self._program, self._folder, self._writer = program, folder, writer
        self._clock, self._main = clock, main
        self._every = {
            name: evaluator.every for name, evaluator in program.experiment.evaluators.items()
        }
        self.scores: dict[str, float] = {}
        self._bad: dict[tuple[str, str], BadRecord] = {}
        self._told: set[tuple[str, str]] = set()
        self._counted: set[tuple[str, str]] = set()

    def check(self) -> None:
        """Opens what evaluators will need, before anything is compiled: hours later it costs more.

        Raises:
          ConfigError: an evaluator could not run. BadDataError: too much of its data is bad.
        """
        for name, evaluator in self._program.experiment.evaluators.items():
            try:
                evaluator.check(self._view(None, 0, lambda: None))
            except ValueError as error:
                raise ConfigError(f"Evaluator {name!r}: {error}") from error
        self._say_bad()

    def due(self, step: int) -> list[str]:
        """Those that run after a step which is not the last."""
        return [n for n, every in self._every.items() if every and step and step % every == 0]

    def missed(self, step: int) -> list[str]:
        """Those that were due at the step of a checkpoint, but were stopped before they had ended;
        the main process looks, for all."""
        there = lambda name: files.exists(self._folder / "evals" / name / f"{step}.json")
        text = ",".join(n for n in self.due(step) if not there(n)) if self._main else ""
        return [name for name in distributed.of_main(text).split(",") if name]

    def run(self, state: TrainState, step: int, stopping: Stopping, names: Any = None) -> None:
        """Runs evaluators, by default all. Raises Preempted if asked to stop meanwhile."""
        evaluators = self._program.experiment.evaluators
        for name in self._every if names is None else names:
            with self._clock.during("evaluate"):
                found = evaluators[name].run(self._view(state, step, stopping.pause))
                workdir_lib.write_scores(self._folder, name, step, found, self._main)
            self._writer.write(step, {f"eval/{name}/{key}": v for key, v in found.items()})
            self.scores |= {f"{name}/{key}": value for key, value in found.items()}
            self._say_bad()
            self._count_bad(step)

    def _view(self, state: TrainState | None, step: int, pause: Callable[[], None]) -> View:
        """The model under evaluation; without parameters where there is no state yet."""
        part = lambda name: getattr(state, name, None)
        return View(
            program=self._program, params=part("params"), model_state=part("model_state"),
            extra=part("extra"), step=step, split=self._program.experiment.data.eval_split,
            folder=self._folder, pause=pause, bad=self._bad,
        )  # fmt: skip

    def _say_bad(self) -> None:
        """Tells of the bad records that were met since it was last asked."""
        new = {key: bad for key, bad in self._bad.items() if key not in self._told}
        self._told |= new.keys()
        for line in left_out(new):
            console.say(line, self._main)

    def _count_bad(self, step: int) -> None:
        """A row of metrics with those met since it was last asked."""
        new = [(split, key) for split, key in self._bad if (split, key) not in self._counted]
        self._counted |= set(new)
        counts = collections.Counter((key[0], self._bad[key].reason) for key in new)
        if counts:
            row = {f"data/{place}/bad/{why}": float(n) for (place, why), n in counts.items()}
            self._writer.write(step, row)

    def say(self, step: int) -> None:
        """The scores: a table beside chance and simple methods, and a line for each evaluator
        without any."""
        if not self._main:
            return
        for name, evaluator in self._program.experiment.evaluators.items():
            start, file = f"{name}/", f"evals/{name}/{step}.json"
            own = {k.removeprefix(start): v for k, v in self.scores.items() if k.startswith(start)}
            with self._clock.during("evaluate"):
                view = self._view(None, step, lambda: None)
                table = levels.rows(own, levels.of(view, name, evaluator, own))
            if table:
                for line in levels.lines(f"{name} ({file})", table):
                    console.say(line)
                continue
            few = ", ".join(f"{start}{k} {v:.3f}" for k, v in list(own.items())[:SHOWN])
            rest = f" and {len(own) - SHOWN} more" if len(own) > SHOWN else ""
            console.say(f"{few}{rest}: {file}")


def left_out(bad: Mapping[tuple[str, str], BadRecord]) -> Iterator[str]:
    """A line for each split with records that evaluation leaves out, by split and name."""
    for split in dict.fromkeys(split for split, _ in bad):
        of = {key: one for (place, key), one in bad.items() if place == split}
        key, first = next(iter(of.items()))
        more = f", and {len(of) - 1} more" if len(of) > 1 else ""
        text = f"evaluation leaves out a bad record of split {split!r}: {key}{more}"
        yield f"{text} ({first.reason}: {first.detail})"
