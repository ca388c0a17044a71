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
from mmjax.objectives import contrastive, objective
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

    def embed(self, modality: str, examples: Sequence[dict[str, Any]], batch_size: int = 100):
        """Unit embeddings [N, D] float32 of a modality in the shared space; zero if absent.

        Raises:
          ValueError: the modality is unknown or no contrastive task trains its projection.
        """
        config = self.program.experiment
        if modality not in config.modalities:
            raise ValueError(
                f"Embedding: modality {modality!r} is not in the model; there are"
                f" {', '.join(config.modalities)}."
            )
        encode = config.modalities[modality].encode
        values = (self.value(modality, e) for e in examples)
        pieces = (None if v is None else encode(v) for v in values)
        return self.embed_pieces(modality, pieces, batch_size)

    def embed_pieces(self, modality: str, pieces: Iterable[Piece | None], batch_size: int = 100):
        """`embed` for encoded values, consumed in batches."""
        run = embedder(self.program, modality)
        group = batch_size * mesh_lib.batch_shards(self.program.mesh)
        pieces, rows = iter(pieces), []
        while part := list(itertools.islice(pieces, group)):
            tokens = _tokens(self.program, modality, [*part, *[None] * (group - len(part))])
            tokens = jax.device_put(tokens, self.program.batch_sharding)
            with jax.set_mesh(self.program.mesh):
                z_BSD = run(self.params, self.model_state, tokens)
            rows.append(to_host(z_BSD)[: len(part), 0])
        width = getattr(self.program.experiment.model, "width", 0)
        return np.concatenate(rows) if rows else np.zeros((0, width), np.float32)

    def scale(self, head: str) -> float:
        """The learned scale of similarities, by the name of its head, `scale/<views>`."""
        program = self.program

        def run(params, model_state):
            model = step_lib.bind(program, params, model_state, 0, program.dtype)
            return model.head(head, jnp.zeros(()))[0]

        run = program.compiled.setdefault(("scale", head), jax.jit(run))
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


def embedder(program: Program, modality: str):
    """Jitted (params, model_state, tokens) -> unit embeddings [B, S, D]; cached in the program."""
    if ("embed", modality) in program.compiled:
        return program.compiled["embed", modality]
    lanes = {
        stream: task.objective.lanes.get(stream, "")
        for task in program.experiment.tasks.values()
        if isinstance(task.objective, contrastive.Contrastive)
        for stream in task.inputs
    }
    if modality not in lanes:
        raise ValueError(
            f"Embedding: modality {modality!r} is in no contrastive task, so it has no projection;"
            f" there are {', '.join(lanes) or 'none'}."
        )

    def run(params, model_state, tokens):
        rows = tokens.ids_BL.shape[0] // mesh_lib.batch_shards(program.mesh)
        model = step_lib.bind(program, params, model_state, rows, program.dtype)
        x_BLD = model.encode(tokens, lane=lanes[modality]).x_BLD
        z_BSD = model.head(f"project/{modality}", contrastive.pool(x_BLD, tokens, 1))
        return objective.unit(z_BSD)

    program.compiled["embed", modality] = jax.jit(run)
    return program.compiled["embed", modality]
