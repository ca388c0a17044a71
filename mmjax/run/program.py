"""Program: an experiment built for a mesh, and its compiled steps.

built = program.build(experiment)
steps = program.compile_all(built)  # {(task, variant): executable}
state, metrics = steps["masked", "default"](built.init_state(), batch)
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

from mmjax import console
from mmjax import step as step_lib
from mmjax.data import loader
from mmjax.data.task import Task
from mmjax.experiment import Experiment
from mmjax.models import names as names_lib
from mmjax.objectives.objective import Extra
from mmjax.optim import gradients
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel import rules as rules_lib
from mmjax.parallel import together
from mmjax.run import stopping
from mmjax.typing import Metrics, PyTree, Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Program(step_lib.Parts):
    """An experiment with ready modalities on a mesh: its model, optimizer and shardings, no arrays.

    Fields:
      canonical: location of each parameter, by canonical name.
      folder: the workdir, where offline tokens are kept; None = in memory.
      compiled: cache of the functions that evaluation has jitted, by purpose.
    """

    experiment: Experiment
    mesh: jax.sharding.Mesh
    vocabulary: Vocabulary
    tx: optax.GradientTransformation
    extras: dict[str, Extra]
    shardings: step_lib.TrainState
    dtype: str
    canonical: dict[str, names_lib.Part]
    folder: Any = None
    compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def batch_sharding(self) -> jax.sharding.NamedSharding:
        """Rows over all batch axes."""
        return rules_lib.batch_sharding(self.mesh)

    def init_state(self) -> step_lib.TrainState:
        """Fresh state, made sharded."""
        return step_lib.init_state(self, self.tx, self.extras, self.shardings)

    def abstract_state(self) -> step_lib.TrainState:
        """Shapes, dtypes and shardings of the state."""

        def init(params, model_state):
            extra = {name: e.init(params) for name, e in self.extras.items()}
            step = jax.numpy.zeros((), jax.numpy.int32)
            return step_lib.TrainState(step, params, model_state, self.tx.init(params), extra)

        shapes = jax.eval_shape(init, self.params, self.model_state)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings
        )

    def train_step(self, task: str, variant: str = "default") -> Callable[..., Any]:
        """The jitted step of a task's variant; trace it under `jax.set_mesh(program.mesh)`."""
        config = self.experiment
        t = config.tasks[task]
        return step_lib.make_train_step(
            self,
            self.tx,
            t.objective,
            self.shardings,
            seed=config.seed,
            group_rows=t.shape(variant).group_rows,
            dtype=self.dtype,
            grad_reduce_dtype=config.optimizer.grad_reduce_dtype.replace("auto", ""),
            grad_clip_norm=config.optimizer.grad_clip_norm,
            learning_rate_scale=t.learning_rate_scale,
            trainable=names_lib.trainable_mask(self.params, t.trainable, self.canonical),
            task=task,
            rule=t.gradient_rule or config.gradient_rule,
            rule_state=next((n for n in _rule_names(task, t) if n in self.extras), ""),
            extras=self.extras,
            update_state=config.model.update_state,
        )

    def to_canonical(self, params: PyTree) -> dict[str, Any]:
        """Parameters by canonical name."""
        return names_lib.to_canonical(params, self.canonical)

    def eval_losses(self, task: str) -> Callable[..., tuple[Metrics, Metrics]]:
        """Jitted (params, model_state, extra, batch) -> (losses, metrics) of a task; the batch has
        the shape of its first variant."""
        t = self.experiment.tasks[task]
        group_rows = next(iter(t.shapes().values())).group_rows

        def run(params, model_state, extra, batch):
            losses, metrics, _ = step_lib.eval_step(
                self, t.objective, params, model_state, extra, batch,
                group_rows=group_rows, dtype=self.dtype,
            )  # fmt: skip
            return losses, metrics

        return together.jit(run)

    def eval_gradients(self, task: str, by_loss: bool) -> Callable[..., dict[str, PyTree]]:
        """Jitted (params, model_state, extra, batch) -> gradient of each loss of a task, by its
        name, or of their sum, named ""; the batch has the shape of its first variant."""
        t = self.experiment.tasks[task]
        group_rows = next(iter(t.shapes().values())).group_rows

        def run(params, model_state, extra, batch):
            def losses(params):
                return step_lib.eval_step(
                    self, t.objective, params, model_state, extra, batch,
                    group_rows=group_rows, dtype=self.dtype,
                )[0]  # fmt: skip

            values, pullback = jax.vjp(losses, params)
            if by_loss:
                return gradients.each(values, lambda weights: pullback(weights)[0])
            return {"": pullback(jax.tree.map(jax.numpy.ones_like, values))[0]}

        return together.jit(run)


def named_parts(
    experiment: Experiment,
) -> tuple[step_lib.Parts, dict[str, names_lib.Part]]:
    """The model of an experiment with ready modalities, taken apart, and its canonical names."""
    vocabulary, heads = experiment.vocabulary(), experiment.heads()
    make = functools.partial(experiment.model.make, vocabulary, heads, experiment.seed)
    parts = step_lib.split(make)
    paths = list(names_lib.flatten(parts.params))
    return parts, experiment.model.canonical_parts(vocabulary, tuple(heads), paths)


def build(experiment: Experiment, devices=None, folder=None) -> Program:
    """Builds an experiment whose modalities are ready; initialises the jax backend.

    Raises:
      ValueError: batches or parameters do not divide over the mesh.
    """
    return on_mesh(experiment, experiment.mesh.make(devices), folder)


def on_mesh(experiment: Experiment, mesh: jax.sharding.Mesh, folder=None) -> Program:
    """The program for a mesh; for a `jax.sharding.AbstractMesh`, shapes and shardings alone."""
    experiment.check_mesh(mesh.size)
    parts, canonical = named_parts(experiment)
    extras: dict[str, Extra] = {}
    for task in experiment.tasks.values():
        extras |= task.objective.extra()
    extras |= _rule_states(experiment, parts.params)
    tx = experiment.optimizer.make(parts.matrices, experiment.total_steps)
    return Program(
        **vars(parts),
        experiment=experiment,
        mesh=mesh,
        vocabulary=experiment.vocabulary(),
        tx=tx,
        extras=extras,
        shardings=step_lib.state_shardings(parts, tx, extras, mesh, experiment.rules),
        dtype=mesh_lib.compute_dtype(experiment.model.dtype, mesh),
        canonical=canonical,
        folder=folder,
    )


def _rule_names(task: str, config: Task) -> tuple[str, ...]:
    """The extra that holds the state of a task's gradient rule: its own, or that of the run."""
    return (f"gradient_rule_{task}",) if config.gradient_rule else ("gradient_rule",)


def _rule_states(experiment: Experiment, params: PyTree) -> dict[str, Extra]:
    """What the gradient rules keep across steps; steps of their tasks change it themselves."""
    rules: dict[str, tuple[Any, list[str]]] = {}
    for name, task in experiment.tasks.items():
        if rule := task.gradient_rule or experiment.gradient_rule:
            rules.setdefault(_rule_names(name, task)[0], (rule, []))[1].append(name)
    states = {
        name: Extra(
            init=functools.partial(rule.init_state, tasks=tuple(tasks)),
            update=lambda tree, *_: tree,
        )
        for name, (rule, tasks) in rules.items()
    }
    return {n: e for n, e in states.items() if jax.tree.leaves(jax.eval_shape(e.init, params))}


def compile_all(program: Program, say: bool = False) -> dict[tuple[str, str], Any]:
    """Compiles all steps in parallel, by (task, variant); `say` prints a line for each."""
    tasks = program.experiment.tasks.items()
    keys = [(name, variant) for name, task in tasks for variant in task.variant_weights()]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {pool.submit(compile_step, program, *key): key for key in keys}
        for job in concurrent.futures.as_completed(jobs):
            executable, seconds = job.result()
            memory = executable.memory_analysis()
            size = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20
            name = "/".join(jobs[job])
            console.say(f"compiled {name}: {seconds:.1f} s, {size:.0f} MiB a device", say)
    return {key: job.result()[0] for job, key in jobs.items()}


def compile_step(program: Program, task: str, variant: str) -> tuple[Any, float]:
    """The compiled step and the seconds that it took."""
    began = time.perf_counter()
    experiment = program.experiment
    batch = loader.batch_shapes(
        experiment.tasks[task], variant, experiment.modalities, program.vocabulary
    )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=program.batch_sharding), batch
    )
    flags = stopping.abstract(program.mesh)
    with jax.set_mesh(program.mesh):
        step = stopping.with_flags(program.train_step(task, variant), program.shardings)
        executable = step.lower(program.abstract_state(), shapes, *flags).compile()
    return executable, time.perf_counter() - began
