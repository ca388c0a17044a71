"""extend(path, experiment, workdir): new modalities for a trained model, which keeps its old ones.

read the old run -> compare modalities -> name what is fresh -> measure the old tasks -> train
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Literal, get_args

from mmjax import console, errors, files
from mmjax import train as train_lib
from mmjax.config.code_file import Code
from mmjax.config.error import ConfigError, nearest
from mmjax.data.task import Task
from mmjax.evaluate.kept import Kept
from mmjax.experiment import Experiment, Init
from mmjax.parallel import distributed
from mmjax.run import checkpoint, load, matching
from mmjax.run import program as program_lib

__all__ = ["Stage", "extend", "extended"]

Stage = Literal["new", "adapters", "all"]
EVALUATOR = "kept"  # name of the evaluator that tells what was lost
LOOKS = 5  # times that it runs
BATCHES = 4  # of each old task


def extend(
    path: str,
    experiment: Experiment,
    workdir: Any,
    *,
    stage: Stage = "new",
    code: Code = None,
    devices: Any = None,
    **how: Any,
) -> train_lib.TrainResult:
    """Trains new modalities on a trained model, or goes on where the workdir stopped.

    The model begins as that of the old run, with fresh embeddings and heads of the new modalities
    beside its own; a `Kept` evaluator compares the losses of the old tasks with those of before.

    Args:
      path: PATH of the run to extend. experiment: has its modalities, unchanged, and new ones.
      workdir: of the new run. code: the config's file, for lineage.
      stage: what is trained. `new`: the parameters of new modalities; old inputs keep giving the
        old outputs. `adapters`: those, and layers that the config has inserted (`LoRA`, `Adapter`).
        `all`: everything.
      how: more arguments of `mmjax.train`.

    Raises:
      ConfigError: it adds nothing, changes an old modality, or has not what its stage trains.
      NoCheckpoint: `path` is no run.
    """
    made = extended(path, experiment, workdir, stage=stage, devices=devices)
    result = train_lib.train(made, workdir, code=code, devices=devices, **how)
    if distributed.is_main():
        before = made.evaluators[EVALUATOR].before  # type: ignore[attr-defined]
        for task, loss in before.items():
            now = result.metrics.get(f"{EVALUATOR}/{task}/loss")
            if now is not None:
                console.say(f"kept: task {task}: loss {loss:.4f} before, {now:.4f} now")
    return result


def extended(
    path: str,
    experiment: Experiment,
    workdir: Any,
    *,
    stage: Stage = "new",
    devices: Any = None,
) -> Experiment:
    """The experiment that `extend` trains."""
    if stage not in get_args(Stage):
        raise ConfigError(f"stage={stage!r} is none of {', '.join(get_args(Stage))}")
    folder, step, _, _ = checkpoint.choose(path)
    old = load.read_experiment(folder, of=experiment)
    added = _added(old, experiment, path)
    fresh = _fresh(old, experiment)
    inserted = [n for n in fresh if not n.startswith(("heads/", *(f"embed/{m}/" for m in added)))]
    _check_stage(stage, fresh, inserted, path)
    tasks = experiment.tasks
    if stage != "all":
        patterns = tuple(matching.by_pattern(fresh))
        tasks = {n: dataclasses.replace(t, trainable=patterns) for n, t in tasks.items()}
    names = _old_names(old, experiment)
    for name, task in old.tasks.items():  # of weight 0: looked at, never trained
        tasks = {names[name]: dataclasses.replace(task, weight=0.0), **tasks}
    kept = _measured(workdir, experiment)
    if kept is None:
        trained = matching.listed(matching.by_pattern(fresh)) if stage != "all" else "everything"
        console.say(
            f"extend: {path} knows {', '.join(old.modalities)}; new: {', '.join(added) or 'none'};"
            f" stage {stage} trains {trained}",
            distributed.is_main(),
        )
        before = _losses(f"{folder}@{step}", experiment, names, devices)
        every = max(1, experiment.total_steps // LOOKS)
        kept = Kept(before=before, num_batches=BATCHES, every=every)
    allowed = tuple(matching.by_pattern(fresh))
    init = Init(path=f"{folder}@{step}", allow_new=allowed, router_state=True)
    evaluators = {EVALUATOR: kept, **experiment.evaluators}
    return dataclasses.replace(experiment, tasks=tasks, init=init, evaluators=evaluators)


def _added(old: Experiment, new: Experiment, path: str) -> list[str]:
    """New modalities. Raises ConfigError where an old one is missing or another."""
    for name, modality in old.modalities.items():
        if name not in new.modalities:
            raise ConfigError(
                f"modality {name!r} of {path} is not in the config"
                f"{nearest(name, new.modalities)}; an extended model keeps all it knows."
            )
        if new.modalities[name] != modality:
            raise ConfigError(
                f"modality {name!r} is {new.modalities[name]} in the config and {modality} in"
                f" {path}; leave it as it was, and give the other one a name of its own."
            )
    return [name for name in new.modalities if name not in old.modalities]


def _fresh(old: Experiment, new: Experiment) -> list[str]:
    """Canonical names of parameters that the old model lacks."""
    there = program_lib.named_parts(old)[1]
    return [name for name in program_lib.named_parts(new)[1] if name not in there]


def _check_stage(stage: str, fresh: list[str], inserted: list[str], path: str) -> None:
    if not fresh and stage != "all":
        raise ConfigError(
            f"the config adds nothing to {path}, so that stage {stage!r} has nothing to train; add"
            " a modality, or use stage 'all'."
        )
    told = matching.listed(matching.by_pattern(inserted))
    if stage == "new" and inserted:
        raise ConfigError(
            f"stage 'new' trains parameters of new modalities, but the config also inserts {told};"
            " use stage 'adapters', or the model as it was."
        )
    if stage == "adapters" and not inserted:
        raise ConfigError(
            "stage 'adapters' trains layers that the config inserts, and it inserts none; wrap its"
            " blocks in LoRA or Adapter (docs/blocks.md), or use stage 'new'."
        )


def _old_names(old: Experiment, new: Experiment) -> dict[str, str]:
    """The names under which old tasks are looked at: their own, unless the config uses it for a
    task of other losses."""

    def is_free(name: str, task: Task) -> bool:
        other = new.tasks.get(name, task)
        same = {"weight": task.weight, "trainable": task.trainable}
        return dataclasses.replace(other, **same) == task

    return {n: n if is_free(n, t) else f"{n}_before" for n, t in old.tasks.items()}


def _losses(path: str, new: Experiment, names: dict[str, str], devices: Any) -> dict[str, float]:
    """Of the old model on its own tasks, under their new names, by which masks are drawn."""
    view = load.load(path, of=new, devices=devices)
    old = view.program.experiment
    tasks = {names[name]: task for name, task in old.tasks.items()}
    program = dataclasses.replace(
        view.program, experiment=dataclasses.replace(old, tasks=tasks), compiled={}
    )
    view = dataclasses.replace(view, program=program)
    return {name: view.losses(name, BATCHES)["loss"] for name in tasks}


def _measured(workdir: Any, experiment: Experiment) -> Kept | None:
    """What was measured when this workdir was started; None = it is new."""
    with contextlib.suppress(errors.NoCheckpoint, ConfigError):
        begun = load.read_experiment(files.given(workdir), of=experiment)
        found = begun.evaluators.get(EVALUATOR)
        return found if isinstance(found, Kept) else None
    return None
