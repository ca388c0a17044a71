"""View: a model bound to parameters, as evaluators, `embed` and users of `load` see it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mmjax import step as step_lib
from mmjax.data import layouts, loader
from mmjax.data.source import BadRecord, Source
from mmjax.data.task import Sample, Streams
from mmjax.modalities.modality import Unreadable
from mmjax.optim import gradients
from mmjax.parallel import mesh as mesh_lib
from mmjax.run import metrics
from mmjax.run.program import Program
from mmjax.typing import Piece, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Parameters on a mesh, with methods from raw values to embeddings and losses.

    `split` is the split under evaluation, `folder` the workdir or None, `data` a source that
    replaces that of the first task.
    """

    program: Program
    params: PyTree
    model_state: PyTree
    extra: PyTree
    step: int
    split: str
    folder: epath.Path | None = None
    data: Source | None = None

    @property
    def source(self) -> Source:
        """`data`, or the source of the first task."""
        return self.data or next(iter(self.program.experiment.tasks.values())).source

    def on(self, data: Source | None) -> View:
        """The same model on other data; None = the same data."""
        return dataclasses.replace(self, data=data) if data else self

    def examples(self, split: str, limit: int | None = None) -> list[dict[str, Any]]:
        """Raw examples of a split, in order; unreadable ones are skipped."""
        records, examples = self.source.open(split), []
        for i in range(len(records)):
            if limit and len(examples) >= limit:
                break
            with contextlib.suppress(BadRecord, Unreadable):
                example = records[i]
                for name in self.program.experiment.modalities:
                    if isinstance(value := self.value(name, example), bytes):
                        self.program.experiment.modalities[name].encode(value)
                examples.append(example)
        return examples

    def value(self, modality: str, example: dict[str, Any]) -> Any:
        """The raw value of a modality in an example."""
        return example.get(self.program.experiment.modalities[modality].field or modality)

    def example(self, modality: str, value: Any) -> dict[str, Any]:
        """An example that consists of this value of a modality."""
        return {self.program.experiment.modalities[modality].field or modality: value}

    def has(self, modality: str, example: dict[str, Any]) -> bool:
        """Whether an example has a modality."""
        return self.value(modality, example) is not None

    def comparing(self, *modalities: str) -> dict[str, str]:
        """The task whose objective represents each modality: one task for all where there is one.

        Raises:
          ValueError: a modality is unknown or represented by no task, or their objectives differ.
        """
        config = self.program.experiment
        views = {name: task.objective.views(task) for name, task in config.tasks.items()}
        for modality in modalities:
            if modality not in config.modalities:
                raise ValueError(
                    f"Embedding: modality {modality!r} is not in the model; there are"
                    f" {', '.join(config.modalities)}."
                )
            if not any(modality in names for names in views.values()):
                known = dict.fromkeys(itertools.chain.from_iterable(views.values()))
                raise ValueError(
                    f"Embedding: modality {modality!r} is in no contrastive task, so it has no"
                    f" projection; there are {', '.join(known) or 'none'}."
                )
        last = lambda *wanted: next(
            (t for t, names in reversed(views.items()) if set(wanted) <= set(names)), ""
        )
        together = last(*modalities)
        chosen = {m: together or last(m) for m in modalities}
        objectives = {task: config.tasks[task].objective for task in chosen.values()}
        if len({None if o.is_pooled else type(o) for o in objectives.values()}) > 1:
            said = ", ".join(
                f"{m!r} by {type(objectives[t]).__name__} (task {t!r})" for m, t in chosen.items()
            )
            raise ValueError(
                f"Embedding: {said} do not compare; train a task with all of them, or with one"
                " kind of objective."
            )
        return chosen

    def embed(
        self,
        modality: str,
        examples: Sequence[dict[str, Any]],
        batch_size: int = 100,
        task: str = "",
    ):
        """Representations [N, ...] float32 of a modality; zero if absent.

        They are what the objective of `task` (default: the last that has the modality) compares:
        unit vectors [N, D] of the contrastive objectives that ship.

        Raises:
          ValueError: the modality is unknown or no task represents it.
        """
        task = task or self.comparing(modality)[modality]
        encode = self.program.experiment.modalities[modality].encode
        values = (self.value(modality, e) for e in examples)
        pieces = (None if v is None else encode(v) for v in values)
        return self.embed_pieces(modality, pieces, batch_size, task)

    def embed_pieces(
        self, modality: str, pieces: Iterable[Piece | None], batch_size: int = 100, task: str = ""
    ):
        """`embed` for encoded values, consumed in batches."""
        run = embedder(self.program, modality, task or self.comparing(modality)[modality])
        group = batch_size * mesh_lib.batch_shards(self.program.mesh)
        pieces, rows = iter(pieces), []
        while part := list(itertools.islice(pieces, group)):
            tokens = _tokens(self.program, modality, [*part, *[None] * (group - len(part))])
            tokens = jax.device_put(tokens, self.program.batch_sharding)
            with jax.set_mesh(self.program.mesh):
                z_BSX = run(self.params, self.model_state, tokens)
            rows.append(to_host(z_BSX)[: len(part), 0])
        if rows:
            return np.concatenate(rows)
        tokens = _tokens(self.program, modality, [None] * group)
        z_BSX = jax.eval_shape(run, self.params, self.model_state, tokens)
        return np.zeros((0, *z_BSX.shape[2:]), np.float32)

    def similarity(self, task: str, a_NX: np.ndarray, b_MX: np.ndarray) -> np.ndarray:
        """Similarity [N, M] of representations, by the objective of a task."""
        return np.asarray(self.program.experiment.tasks[task].objective.similarity(a_NX, b_MX))

    def prototype(self, task: str, z_PX: np.ndarray) -> np.ndarray | None:
        """One representation for several prompts of a class, where a task's objective has one."""
        return self.program.experiment.tasks[task].objective.prototype(z_PX)

    def logit_scale(self, task: str) -> float:
        """What similarities of a task are multiplied by to add to log-probabilities."""
        program, config = self.program, self.program.experiment.tasks[task]

        def run(params, model_state):
            model = step_lib.bind(program, params, model_state, 0, program.dtype)
            return config.objective.logit_scale(model, config.objective.views(config))

        run = program.compiled.setdefault(("logit_scale", task), jax.jit(run))
        with jax.set_mesh(program.mesh):
            return float(to_host(run(self.params, self.model_state)))

    def losses(self, task: str, num_batches: int) -> dict[str, float]:
        """Mean losses and metrics of a task over the first batches of the split."""
        program = self.program
        key = ("losses", task)
        run = program.compiled.setdefault(key, program.eval_losses(task))
        window = metrics.Window()
        for batch in loader.eval_batches(program, task, self.split, num_batches):
            with jax.set_mesh(program.mesh):
                outputs = run(self.params, self.model_state, self.extra, batch)
            losses, more = jax.device_get(outputs)
            window.add({"loss": sum(losses.values())} | more)
        return window.take()

    def gradients(self, task: str, num_batches: int, by_loss: bool = False) -> dict[str, PyTree]:
        """Gradient of a task's mean loss over the first batches of the split, by name of the loss
        (`by_loss`) or as one, named ""; on the devices, sharded like the parameters."""
        program, total = self.program, None
        run = program.compiled.setdefault(
            ("gradients", task, by_loss), program.eval_gradients(task, by_loss)
        )
        count = 0
        for batch in loader.eval_batches(program, task, self.split, num_batches):
            with jax.set_mesh(program.mesh):
                own = run(self.params, self.model_state, self.extra, batch)
                total = own if total is None else jax.tree.map(jnp.add, total, own)
            count += 1
        if total is None:
            raise ValueError(
                f"Gradients: task {task!r} has no records in split {self.split!r}; name another."
            )
        return jax.tree.map(lambda x: x / count, total)

    def inner(self, a: PyTree, b: PyTree) -> float:
        """Inner product of two trees like the parameters."""
        run = self.program.compiled.setdefault("inner", jax.jit(gradients.inner))
        with jax.set_mesh(self.program.mesh):
            return float(to_host(run(a, b)))

    def model(self, group_rows: int = 0):
        """The model with its parameters, which offers `encode`, `decode` and `head`."""
        program = self.program
        return step_lib.bind(program, self.params, self.model_state, group_rows, program.dtype)


def to_host(array) -> np.ndarray:
    """The whole of a global array; every process must call it."""
    if jax.process_count() == 1:
        return np.asarray(jax.device_get(array))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _tokens(program: Program, modality: str, pieces: Sequence[Piece | None]):
    samples = [Sample({modality: piece}, 0, (i, 0), seed=0) for i, piece in enumerate(pieces)]
    streams = Streams(inputs=(modality,), targets=())
    batch, _ = layouts.Aligned().build(samples, streams, program.vocabulary)
    return batch.views[modality]


def embedder(program: Program, modality: str, task: str):
    """Jitted (params, model_state, tokens) -> representations [B, S, ...] by the objective of a
    task; cached in the program."""
    objective = program.experiment.tasks[task].objective

    def run(params, model_state, tokens):
        rows = tokens.ids_BL.shape[0] // mesh_lib.batch_shards(program.mesh)
        model = step_lib.bind(program, params, model_state, rows, program.dtype)
        return objective.represent(model, tokens, modality, 1)[0].astype(jnp.float32)

    return program.compiled.setdefault(("embed", task, modality), jax.jit(run))
