"""Program: what an experiment comes to on a mesh. Used by train, evaluate, load and info."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from mmjax import step as step_lib
from mmjax.experiment import Experiment
from mmjax.models import names as names_lib
from mmjax.objectives.objective import Extra
from mmjax.parallel import rules as rules_lib
from mmjax.typing import Metrics, PyTree, Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """An experiment with ready modalities, taken apart for a mesh; holds no arrays.

    `compiled` keeps functions that evaluation makes, jitted by `jit`, so that they are made once.
    `folder` is the workdir, where offline tokens are kept; None = in memory.
    """

    experiment: Experiment
    mesh: jax.sharding.Mesh
    vocabulary: Vocabulary
    parts: step_lib.Parts
    tx: optax.GradientTransformation
    extras: dict[str, Extra]
    shardings: step_lib.TrainState
    dtype: str
    canonical: dict[str, names_lib.Part]
    folder: Any = None
    compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)
    jit: Callable[..., Any] = jax.jit

    @property
    def batch_sharding(self) -> jax.sharding.NamedSharding:
        """Rows over all batch axes."""
        return rules_lib.batch_sharding(self.mesh)

    def init_state(self) -> step_lib.TrainState:
        """Fresh state, made sharded."""
        return step_lib.init_state(self.parts, self.tx, self.extras, self.shardings)

    def abstract_state(self) -> step_lib.TrainState:
        """Shapes, dtypes and shardings of the state."""

        def init(params, model_state):
            extra = {name: e.init(params) for name, e in self.extras.items()}
            step = jax.numpy.zeros((), jax.numpy.int32)
            return step_lib.TrainState(step, params, model_state, self.tx.init(params), extra)

        shapes = jax.eval_shape(init, self.parts.params, self.parts.model_state)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings
        )

    def train_step(self, task: str, variant: str = "default") -> Callable[..., Any]:
        """The jitted step of a task's variant; trace it under `jax.set_mesh(program.mesh)`."""
        config = self.experiment
        t = config.tasks[task]
        other = t.variants.get(variant)
        return step_lib.make_train_step(
            self.parts,
            self.tx,
            t.objective,
            self.shardings,
            seed=config.seed,
            group_rows=(other.group_rows if other else None) or t.group_rows,
            dtype=self.dtype,
            grad_clip_norm=config.optimizer.grad_clip_norm,
            learning_rate_scale=t.learning_rate_scale,
            trainable=step_lib.trainable_mask(self.parts, t.trainable, self.names_by_path()),
            rule=config.gradient_rule,
            extras=self.extras,
            update_state=config.model.update_state,
        )

    def names_by_path(self) -> dict[str, tuple[str, ...]]:
        """Canonical names that lie in each parameter."""
        names: dict[str, tuple[str, ...]] = {}
        for name, part in self.canonical.items():
            names[part.path] = (*names.get(part.path, ()), name)
        return names

    def to_canonical(self, params: PyTree) -> dict[str, Any]:
        """Parameters by canonical name."""
        return names_lib.to_canonical(params, self.canonical)

    def eval_losses(self, task: str) -> Callable[..., tuple[Metrics, Metrics]]:
        """Jitted (params, model_state, extra, batch) -> (losses, metrics) of a task."""
        t = self.experiment.tasks[task]

        def run(params, model_state, extra, batch):
            losses, metrics, _ = step_lib.eval_step(
                self.parts, t.objective, params, model_state, extra, batch,
                group_rows=t.group_rows, dtype=self.dtype,
            )  # fmt: skip
            return losses, metrics

        return self.jit(run)


def build(experiment: Experiment, devices=None, folder=None) -> Program:
    """Takes an experiment with ready modalities apart; initialises the jax backend.

    Raises:
      ValueError: batches or parameters do not divide over the mesh.
    """
    mesh = experiment.mesh.make(devices)
    experiment.check_mesh(mesh.size)
    vocabulary, heads = experiment.vocabulary(), experiment.heads()
    make = functools.partial(experiment.model.make, vocabulary, heads, experiment.seed)
    parts = step_lib.split(make)
    extras: dict[str, Extra] = {}
    for task in experiment.tasks.values():
        extras |= task.objective.extra()
    tx = experiment.optimizer.make(parts.matrices, experiment.total_steps)
    paths = list(names_lib.flatten(parts.params))
    canonical = experiment.model.canonical_parts(vocabulary, tuple(heads), paths)
    return Program(
        experiment=experiment,
        mesh=mesh,
        vocabulary=vocabulary,
        parts=parts,
        tx=tx,
        extras=extras,
        shardings=step_lib.state_shardings(parts, tx, extras, mesh, experiment.rules),
        dtype=step_lib.compute_dtype(experiment.model.dtype),
        canonical=canonical,
        folder=folder,
    )
