"""train(experiment, workdir): the loop, in execution order.

open the workdir -> ready the modalities -> build the program -> compile every (task, variant)
-> restore or init -> steps, with metrics read one step late -> save -> evaluate
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
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
from mmjax.run import (
    agreement,
    alarms,
    checkpoint,
    experts,
    lifecycle,
    lock,
    metrics,
    profiling,
    program,
    resume,
    trackers,
    warm_start,
)
from mmjax.run import watch as watch_lib
from mmjax.run import workdir as workdir_lib
from mmjax.run.clock import Clock
from mmjax.run.evaluations import Evaluations
from mmjax.run.stopping import Stopping
from mmjax.step import TrainState


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
    exit_if_hung: bool = False,
) -> TrainResult:
    """Trains, or goes on where the workdir stopped; a later call with the same workdir resumes.

    Args:
      workdir: folder of the run, local or a bucket. code: the config's file, for lineage.
      devices: devices to use; None = all.
      before_compile: called with the program, whose steps are compiled next.
      exit_if_hung: ends this process (exit 69) where a step or batch hangs, as `mmjax train` does;
        otherwise the stacks are written. One of several processes always ends.

    Raises:
      ValueError: the config does not fit the mesh, or the workdir belongs to another experiment.
      WorkdirBusy, BadDataError, NumericsError, StorageError, Preempted, HostLost: see docs/errors.
    """
    experiment.mixture.bind(experiment.tasks, experiment.seed).check(experiment.total_steps)
    distributed.initialize()
    main = distributed.is_main()
    folder = files.given(workdir)
    checkpoint.refuse_new(folder)
    with (
        watch_lib.watching(folder, experiment.guards.hang_seconds, exit_if_hung) as watch,
        contextlib.ExitStack() as last,
        watch.telling(),
    ):
        held = last.enter_context(workdir_lib.held(folder, main))
        stop = last.enter_context(lifecycle.stop_on_signals())
        data = resume.fingerprints(experiment)
        agreement.agree(experiment, code, data, folder)
        chosen = workdir_lib.resume_from(folder, main)
        manifest = chosen.manifest if chosen else None
        course = resume.course(experiment, manifest)
        if main:
            workdir_lib.open_run(folder, experiment, code, chosen, data)
        experiment.check_mesh(experiment.mesh.make(devices).size)
        experiment = workdir_lib.ready_modalities(experiment, folder, main, manifest)
        experiment = policy.resolved(experiment, devices, say=main)
        built = program.build(experiment, devices, folder)
        source = None if chosen else warm_start.find(built)
        stopping = Stopping(stop, built.mesh)
        loop = _Loop(built, folder, main, stopping, watch.clock, course, data, held)
        last.callback(loop.close)
        last.enter_context(loop.profiler.listening())
        loop.evaluations.check()
        loop.compile(before_compile)
        loop.restore(chosen, source)
        loop.run()
        return TrainResult(loop.state, built, loop.finish())


class _Loop:
    """State of one `train` call; its methods are called in the order in which they stand."""

    def __init__(
        self,
        built: program.Program,
        folder: epath.Path,
        main: bool,
        stopping: Stopping,
        clock: Clock,
        course: mixture.Course,
        data: dict[str, str],
        held: lock.Held | None,
    ):
        self.program, self.experiment, self.folder = built, built.experiment, folder
        self.main, self.stopping, self.clock = main, stopping, clock
        self.course, self.data = course, data
        self.executables: dict[tuple[str, str], Any] = {}
        self.stream: loader.Stream | None = None
        self.flops, peak = flops.of_program(self.program)
        share = loader.host_share(self.program.batch_sharding)
        self.meter, self.skipped = metrics.Meter(self.program.mesh.size, peak, share), 0
        self.experts, self.alarms = experts.Window(self.program, folder, main), alarms.Alarms()
        logging = self.experiment.logging
        self.profiler = profiling.Profiler(folder, logging.profiled)
        tracker = trackers.of(self.experiment, folder) if main else None
        self.writer = metrics.Writer(folder, main, logging.tensorboard, tracker)
        self.saver = checkpoint.Saver(folder, self.experiment.checkpoint, held, self.writer.flush)
        self.progress = console.Progress(self.experiment.total_steps, 0, False)
        self.evaluations = Evaluations(built, folder, self.writer, clock, main)
        self.state: Any = None

    # ---- compile: running out of memory is met before step 1

    def compile(self, before: Callable[[program.Program], None] | None) -> None:
        """One executable per (task, variant), all ahead."""
        with self.clock.during("compile"):
            if before is not None:
                before(self.program)
            self.executables = program.compile_all(self.program, self.main)

    # ---- restore

    def restore(self, chosen: checkpoint.Chosen | None, source: Any) -> None:
        """The state of a checkpoint, or a fresh one, with the parameters that `init` names."""
        if chosen is None:
            self.writer.rewind(0)
            self.state = self.program.init_state()
            if source is not None:
                self.state = source.load(self.state)
                workdir_lib.write_init(self.folder, source.report(), self.main)
                self._evaluate(0)  # what later scores of these evaluators are compared to
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
        if start < total:
            self._evaluate(start, self.evaluations.missed(start))
        distributed.barrier("the first step")  # compiling may take one process much longer
        for step in range(start, total):
            self.clock.enter("input")
            made = next(self.stream)
            self.meter.waited += self.clock.enter("step")
            place, batch, counts = made  # here the batch before is freed, which takes a while
            executable = self.executables[place.task, place.variant]
            flags = self.stopping.flags()
            self.profiler.before(step, self.state)
            with jax.transfer_guard("disallow"):
                self.state, out = executable(self.state, batch, *flags)
            if previous is not None:
                self._read(*previous)
            done = step + 1
            self._revise(done, total)  # by losses of steps before this one, which still runs
            previous = (step, place, out, counts)
            self.progress.advance(done)
            due = settings.every and done % settings.every == 0 and done < total
            if due or self.stopping.now:
                self._read(*previous)
                previous = None
                self._save(done)
            if self.stopping.now:
                self.saver.wait()
                raise self.stopping.stopped(done)
            if done < total:
                self._evaluate(done, self.evaluations.due(done))
        if previous is not None:
            self._read(*previous)

    def _revise(self, done: int, total: int) -> None:
        """New weights from a step on, where the schedule changes them; batches follow."""
        weights = self.course.revise(done)
        if weights:
            self.writer.write(done, {f"mixture/{task}": share for task, share in weights.items()})
            if done < total and self.stream is not None:
                self.stream = self.stream.again(done, self.course.journal)

    def _read(self, step: int, place: mixture.Place, out: dict[str, Any], counts: dict) -> None:
        """Metrics of a finished step: guards, and a log when it is due."""
        out = self.experts.add(step, self.stopping.read(out))
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
            row = self.meter.row(done) | self.experts.row(done) | self.clock.metrics()
            self.writer.write(done, row)
            for line in self.alarms.lines(row):
                console.say(line, self.main)
            self.progress.log(done, metrics.summary(row))

    # ---- save and evaluate

    def _save(self, step: int) -> None:
        with self.clock.during("save"):
            manifest = workdir_lib.manifest(self.program, step, self.course, self.data)
            self.saver.save(self.state, manifest)
        self.writer.write(step, self.clock.metrics())

    def _evaluate(self, step: int, names: Sequence[str] | None = None) -> None:
        """Runs evaluators; where asked to stop meanwhile, saves first: those are run later."""
        try:
            self.evaluations.run(self.state, step, self.stopping, names)
        except errors.Preempted as stop:
            if not step:
                raise self.stopping.stopped(step, saved=False) from stop
            self._save(step)
            self.saver.wait()
            raise self.stopping.stopped(step) from stop

    def finish(self) -> dict[str, float]:
        """Saves the last step, runs all evaluators; returns their metrics."""
        self.progress.close()
        total = int(self.state.step)
        self._save(total)
        self._evaluate(total)
        self.evaluations.say(total)
        console.say(f"done; mmjax report {self.folder} makes a page of the run", self.main)
        self.saver.wait()
        self.writer.write(total, self.clock.metrics())
        seconds = self.clock.seconds() | {"verify": self.saver.verify_seconds}
        workdir_lib.write_seconds(self.folder, seconds, self.main)
        return self.evaluations.scores

    def close(self) -> None:
        """Ends workers, bars and files, also after an error."""
        if self.stream is not None:
            self.stream.close()
        self.progress.close()
        self.writer.close()
        self.saver.close()
