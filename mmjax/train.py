"""train(experiment, workdir): the loop, in execution order.

open the workdir -> ready the modalities -> build the program -> compile every (task, variant)
-> restore or init -> steps, with metrics read one step late -> save -> evaluate
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from mmjax import console, errors, files
from mmjax.config.code_file import Code
from mmjax.data import loader, mixture
from mmjax.experiment import Experiment
from mmjax.parallel import distributed
from mmjax.plan import flops, policy
from mmjax.run import checkpoint, lifecycle, metrics, program, resume, warm_start
from mmjax.run import workdir as workdir_lib
from mmjax.run.view import View
from mmjax.step import TrainState

SCORES_SHOWN = 3  # scores of an evaluator that are printed at the end


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run leaves in memory."""

    state: TrainState
    program: program.Program
    metrics: dict[str, float]  # of the evaluators at the end

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state.step)


def train(
    experiment: Experiment,
    workdir,
    *,
    code: Code = None,
    devices=None,
    before_compile: Callable[[program.Program], None] | None = None,
) -> TrainResult:
    """Trains, or goes on where the workdir stopped; a later call with the same workdir resumes.

    Args:
      workdir: folder of the run, local or a bucket. code: the config's file, for lineage.
      devices: devices to use; None = all.
      before_compile: called with the program, whose steps are compiled next.

    Raises:
      ValueError: the config does not fit the mesh, or the workdir belongs to another experiment.
      WorkdirBusy, BadDataError, NumericsError, StorageError, Preempted: see docs/errors.
    """
    began = time.perf_counter()
    experiment.mixture.bind(experiment.tasks, experiment.seed).check(experiment.total_steps)
    distributed.initialize()
    main = distributed.is_main()
    folder = files.given(workdir)
    checkpoint.refuse_new(folder)
    with workdir_lib.held(folder, main), lifecycle.stop_on_signals() as stop:
        chosen = workdir_lib.resume_from(folder, main)
        manifest = chosen.manifest if chosen else None
        course = resume.course(experiment, manifest)
        data = resume.fingerprints(experiment) if main else {}
        if main:
            workdir_lib.open_run(folder, experiment, code, chosen, data)
        experiment.check_mesh(len(devices if devices is not None else jax.devices()))
        experiment = workdir_lib.ready_modalities(experiment, folder, main, manifest)
        experiment = policy.resolved(experiment, devices, say=main)
        built = program.build(experiment, devices, folder)
        source = None if chosen else warm_start.find(built)
        loop = _Loop(built, folder, main, stop, course, data)
        try:
            loop.compile(before_compile)
            loop.restore(chosen, source)
            loop.seconds["start"] = time.perf_counter() - began
            loop.run()
            return TrainResult(loop.state, built, loop.finish())
        finally:
            loop.close()


class _Loop:
    """State of one `train` call; its methods are called in the order in which they stand."""

    def __init__(
        self,
        built: program.Program,
        folder: epath.Path,
        main: bool,
        stop: lifecycle.Stop,
        course: mixture.Course,
        data: dict[str, str],
    ):
        self.program, self.experiment, self.folder = built, built.experiment, folder
        self.main, self.stop, self.course, self.data = main, stop, course, data
        self.executables: dict[tuple[str, str], Any] = {}
        self.stream: loader.Stream | None = None
        self.seconds: dict[str, float] = {}
        self.flops, peak = flops.of_program(self.program)
        self.meter, self.skipped = metrics.Meter(self.program.mesh.size, peak), 0
        self.saver = checkpoint.Saver(folder, self.experiment.checkpoint)
        self.writer = metrics.Writer(folder, main, self.experiment.logging.tensorboard)
        self.progress = console.Progress(self.experiment.total_steps, 0, False)
        self.state: Any = None
        self.scores: dict[str, float] = {}

    # ---- compile: running out of memory is met before step 1

    def compile(self, before: Callable[[program.Program], None] | None) -> None:
        """One executable per (task, variant), all ahead."""
        began = time.perf_counter()
        if before is not None:
            before(self.program)
        self.executables = program.compile_all(self.program, self.main)
        self.seconds["compile"] = time.perf_counter() - began

    # ---- restore

    def restore(self, chosen: checkpoint.Chosen | None, source: Any) -> None:
        """The state of a checkpoint, or a fresh one, with the parameters that `init` names."""
        if chosen is None:
            self.writer.rewind(0)
            self.state = self.program.init_state()
            if source is not None:
                self.state = source.load(self.state)
                workdir_lib.write_init(self.folder, source.report(), self.main)
                self._evaluate_all(0)  # what later scores of these evaluators are compared to
            return
        step = chosen.step
        self.writer.rewind(step)
        like = self.program.abstract_state()._asdict()
        items = checkpoint.restore(
            self.folder, step, {name: like[name] for name in checkpoint.ITEMS}
        )
        self.saver.know(step)
        count = jax.device_put(np.int32(step), self.program.shardings.step)
        self.state = TrainState(step=count, **items)
        note = resume.mesh_note(chosen.manifest, self.program.mesh)
        console.say(f"resumed {self.folder} at step {step}{note}", self.main)

    # ---- steps

    def run(self) -> None:
        """Steps until `total_steps`; metrics of step n are read while n + 1 runs."""
        total, start = self.experiment.total_steps, int(self.state.step)
        self.progress = console.Progress(total, start, self.main)
        self.meter.start(start)
        previous = None
        settings = self.experiment.checkpoint
        self.stream = loader.open_stream(
            self.experiment, self.program, self.course.bound, self.course.journal, start
        )
        distributed.barrier("the first step")  # compiling may take one process much longer
        for step in range(start, total):
            began = time.perf_counter()
            made = next(self.stream)
            self.meter.waited += time.perf_counter() - began
            place, batch, counts = made  # here the batch before is freed, which takes a while
            executable = self.executables[place.task, place.variant]
            with jax.transfer_guard("disallow"):
                self.state, out = executable(self.state, batch)
            if previous is not None:
                self._read(*previous)
            done = step + 1
            self._revise(done, total)  # by losses of steps before this one, which still runs
            previous = (step, place, out, counts)
            self.progress.advance(done)
            due = settings.every and done % settings.every == 0 and done < total
            stopping = self._stopping(done)
            if due or stopping:
                self._read(*previous)
                previous = None
                self._save(done)
                if stopping:
                    self.saver.wait()
                    self.stop.check(done)
                    raise errors.Preempted(
                        f"another process was asked to stop: saved step {done}; the same command"
                        " goes on."
                    )
            self._evaluate_due(done, total)
        if previous is not None:
            self._read(*previous)

    def _revise(self, done: int, total: int) -> None:
        """New weights from a step on, where the schedule changes them; batches follow."""
        weights = self.course.revise(done)
        if weights:
            self.writer.write(done, {f"mixture/{task}": share for task, share in weights.items()})
            if done < total and self.stream is not None:
                self.stream = self.stream.again(done, self.course.journal)

    def _stopping(self, done: int) -> bool:
        """Whether to stop after this step. Processes get their signals at different steps, so
        several agree on one when they log."""
        if jax.process_count() == 1:
            return self.stop.requested
        if done % self.experiment.logging.log_every:
            return False
        jax.block_until_ready(self.state)  # collectives of two programs may not cross
        return distributed.any_process(self.stop.requested)

    def _read(self, step: int, place: mixture.Place, out: dict[str, Any], counts: dict) -> None:
        """Metrics of a finished step: guards, and a log when it is due."""
        out = {name: np.asarray(value) for name, value in out.items()}
        record = {name: out.pop(name) for name in list(out) if name.startswith("load")}
        self.skipped = self.skipped + 1 if out["skipped"] else 0
        if self.skipped > self.experiment.guards.max_skipped_steps:
            raise errors.NumericsError(
                f"Task {place.task!r}, step {step}: the loss or gradient was not finite for"
                f" {self.skipped} steps in a row; lower learning_rate, set grad_clip_norm, or look"
                " at the data of this task."
            )
        self.meter.add(place.task, out, counts, self.flops.get(place[:2], 0.0))
        self.course.observe(place.task, float(out["loss"]))
        done, every = step + 1, self.experiment.logging.log_every
        if done % every == 0 or done == self.experiment.total_steps:
            self.saver.check()
            streams = tuple(s.name for s in self.program.vocabulary.specs)
            row = self.meter.row(done) | metrics.router_load(place.task, record, streams)
            self.writer.write(done, row)
            self.progress.log(done, metrics.summary(row))

    # ---- save and evaluate

    def _save(self, step: int) -> None:
        began = time.perf_counter()
        manifest = workdir_lib.manifest(self.program, step, self.course, self.data)
        self.saver.save(self.state, manifest)
        self.seconds["save"] = self.seconds.get("save", 0.0) + time.perf_counter() - began

    def _evaluate_due(self, step: int, total: int) -> None:
        for name, evaluator in self.experiment.evaluators.items():
            if evaluator.every and step % evaluator.every == 0 and step < total:
                self._evaluate(name, step)

    def _evaluate_all(self, step: int) -> None:
        for name in self.experiment.evaluators:
            self._evaluate(name, step)

    def _evaluate(self, name: str, step: int) -> None:
        began = time.perf_counter()
        view = View(
            program=self.program, params=self.state.params, model_state=self.state.model_state,
            extra=self.state.extra, step=step, split=self.experiment.data.eval_split,
            folder=self.folder,
        )  # fmt: skip
        found = self.experiment.evaluators[name].run(view)
        workdir_lib.write_scores(self.folder, name, step, found, self.main)
        self.writer.write(step, {f"eval/{name}/{key}": value for key, value in found.items()})
        self.scores |= {f"{name}/{key}": value for key, value in found.items()}
        self.seconds["evaluate"] = self.seconds.get("evaluate", 0.0) + time.perf_counter() - began

    def finish(self) -> dict[str, float]:
        """Saves the last step, runs all evaluators; returns their metrics."""
        self.progress.close()
        total = int(self.state.step)
        self._save(total)
        self._evaluate_all(total)
        for name in self.experiment.evaluators:
            own = [f"{k} {v:.3f}" for k, v in self.scores.items() if k.startswith(f"{name}/")]
            rest = f" and {len(own) - SCORES_SHOWN} more" if len(own) > SCORES_SHOWN else ""
            console.say(
                f"{', '.join(own[:SCORES_SHOWN])}{rest}: evals/{name}/{total}.json", self.main
            )
        console.say(f"done; mmjax report {self.folder} makes a page of the run", self.main)
        self.saver.wait()
        self.seconds["verify"] = self.saver.verify_seconds
        workdir_lib.write_seconds(self.folder, self.seconds, self.main)
        return self.scores

    def close(self) -> None:
        """Ends workers, bars and files, also after an error."""
        if self.stream is not None:
            self.stream.close()
        self.progress.close()
        self.writer.close()
        self.saver.close()
