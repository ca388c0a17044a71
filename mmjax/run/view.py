"""View: a model bound to parameters, as evaluators, `embed` and users of `load` see it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mmjax import errors
from mmjax import step as step_lib
from mmjax.data import layouts, loader
from mmjax.data.reader import as_bad, check_bad
from mmjax.data.source import BadRecord, Records, Source, key_of
from mmjax.data.task import Sample, Streams
from mmjax.optim import gradients
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel import together
from mmjax.run import metrics
from mmjax.run.program import Program
from mmjax.typing import Batch, Piece, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Parameters on a mesh, with methods from raw values to embeddings and losses.

    `split` is the split under evaluation, `folder` the workdir or None, `data` a source that
    replaces that of the first task. `pause` is called between batches and may end an evaluation by
    an error, on all processes at once. `bad` collects the records that were left out, by split and
    name.
    """

    program: Program
    params: PyTree
    model_state: PyTree
    extra: PyTree
    step: int
    split: str
    folder: epath.Path | None = None
    data: Source | None = None
    pause: Callable[[], None] = lambda: None
    bad: dict[tuple[str, str], BadRecord] = dataclasses.field(default_factory=dict)

    @property
    def source(self) -> Source:
        """`data`, or the source of the first task."""
        return self.data or next(iter(self.program.experiment.tasks.values())).source

    def on(self, data: Source | None) -> View:
        """The same model on other data; None = the same data."""
        return dataclasses.replace(self, data=data) if data else self

    def records(self, split: str) -> Records:
        """A split, opened. Raises ValueError where the source has none of this name, or it is
        empty."""
        kind, known = type(self.source).__name__, None
        with contextlib.suppress(NotImplementedError):
            known = self.source.splits()
        if known is not None and split not in known:
            raise ValueError(
                f"{kind} has no split {split!r}; there are {', '.join(known) or 'none'}. Give it"
                " one, or name another (data.eval_split is the one that is evaluated)."
            )
        records = self.source.open(split)
        if not len(records):
            raise ValueError(f"{kind}: split {split!r} has no record; give it some.")
        return records

    def examples(
        self, split: str, limit: int | None = None, decoded: bool = True
    ) -> list[dict[str, Any]]:
        """Raw examples of a split, in order; unreadable ones are left out, and counted in `bad`.

        Where a record has several values of a modality, such as captions, each further one is an
        example of its own, with the identity of the record, behind it.

        Args:
          limit: of records.
          decoded: bytes are decoded, to see what is bad; otherwise `bad` says which ones were.

        Raises:
          BadDataError: more of them are bad than `guards` allow.
        """
        found = itertools.islice(self.each(split, decoded=decoded), limit or None)
        return list(itertools.chain.from_iterable(found))

    def each(
        self, split: str, rows: Iterable[int] | None = None, *, decoded: bool = True
    ) -> Iterator[list[dict[str, Any]]]:
        """The raw examples of one record after another, as `examples` gives them.

        Args:
          rows: numbers of the records; None = all.
        """
        records, bad = self.records(split), {}
        allowed = self.program.experiment.guards.allowed_bad
        for count, row in enumerate(range(len(records)) if rows is None else rows, 1):
            if not decoded and self.bad and (split, key_of(records, row)) in self.bad:
                continue
            try:
                found = self._whole(records[row], row, decoded)
            except (MemoryError, errors.RunError):
                raise
            except Exception as error:  # sources and decoders raise anything on broken bytes
                bad[row] = self.bad[split, key_of(records, row)] = as_bad(error)
                check_bad(self.source, split, records, bad, count, allowed)
                continue
            yield found

    def _whole(self, example: dict[str, Any], row: int, decoded: bool) -> list[dict[str, Any]]:
        """The examples of a record. Raises if any of its bytes cannot be read."""
        modalities = self.program.experiment.modalities if decoded else {}
        for name, modality in modalities.items():
            value = self.value(name, example)
            # Bytes may be unreadable, or hold nothing of the kind (a video without sound).
            if isinstance(value, bytes) and modality.encode(value) is None:
                example = example | self.example(name, None)
        return self._each_value(example, row)

    def _each_value(self, example: dict[str, Any], record: int) -> list[dict[str, Any]]:
        """The example with its first values, then one for each further value."""
        first, further = dict(example), []
        for name, modality in self.program.experiment.modalities.items():
            raw = example.get(modality.field or name)
            values = modality.choices(raw)
            if len(values) > 1:
                first |= self.example(name, values[0])
                further += [self.example(name, value) for value in values[1:]]
        if not further:
            return [first]
        identity = {"identity": example.get("identity", record)}
        return [first | identity, *(one | identity for one in further)]

    def value(self, modality: str, example: dict[str, Any]) -> Any:
        """The raw value of a modality in an example."""
        config = self.program.experiment.modalities[modality]
        return config.given(example.get(config.field or modality))

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
            self.pause()
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

        run = program.compiled.setdefault(("logit_scale", task), together.jit(run))
        with jax.set_mesh(program.mesh):
            return float(to_host(run(self.params, self.model_state)))

    def losses(self, task: str, num_batches: int) -> dict[str, float]:
        """Mean losses and metrics of a task over the first batches of the split."""
        program = self.program
        key = ("losses", task)
        run = program.compiled.setdefault(key, program.eval_losses(task))
        window = metrics.Window()
        for batch in self._batches(task, num_batches):
            with jax.set_mesh(program.mesh):
                outputs = run(self.params, self.model_state, self.extra, batch)
            losses, more = jax.device_get(outputs)
            window.add({"loss": sum(losses.values())} | more)
            self.pause()
        return window.take()

    def _batches(self, task: str, num_batches: int) -> Iterator[Batch]:
        """The first batches of the split; what is bad among their records is counted."""
        yield from loader.eval_batches(self.program, task, self.split, num_batches)
        reader = loader.eval_reader(self.program, task, self.split)
        self.bad.update({(self.split, key_of(reader.records, n)): b for n, b in reader.bad.items()})

    def gradients(self, task: str, num_batches: int, by_loss: bool = False) -> dict[str, PyTree]:
        """Gradient of a task's mean loss over the first batches of the split, by name of the loss
        (`by_loss`) or as one, named ""; on the devices, sharded like the parameters."""
        program, total = self.program, None
        run = program.compiled.setdefault(
            ("gradients", task, by_loss), program.eval_gradients(task, by_loss)
        )
        count = 0
        for batch in self._batches(task, num_batches):
            with jax.set_mesh(program.mesh):
                own = run(self.params, self.model_state, self.extra, batch)
                total = own if total is None else jax.tree.map(jnp.add, total, own)
            count += 1
            jax.block_until_ready(total)  # collectives of two programs may not cross
            self.pause()
        if total is None:
            raise ValueError(
                f"Gradients: task {task!r} has no records in split {self.split!r}; name another."
            )
        return jax.tree.map(lambda x: x / count, total)

    def inner(self, a: PyTree, b: PyTree) -> float:
        """Inner product of two trees like the parameters."""
        run = self.program.compiled.setdefault("inner", together.jit(gradients.inner))
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

    return program.compiled.setdefault(("embed", task, modality), together.jit(run))
