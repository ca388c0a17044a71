"""Task and Layout: what one kind of optimizer step reads, and how it is laid out in arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.config import ranges
from mmjax.data import rows as rows_lib
from mmjax.data.augment import Augment
from mmjax.data.source import Source
from mmjax.typing import Batch, Piece, Vocabulary


@dataclasses.dataclass(eq=False)
class Sample:
    """An encoded example with its identity and its own random numbers."""

    pieces: dict[str, Piece | None]  # by stream name; None = absent
    identity: int
    sample: tuple[int, int]  # (source index, epoch)
    seed: int  # depends on (seed, task, epoch, source index) only
    weight: float = 1.0  # 0 = padding sample (evaluation)

    @functools.cached_property
    def rng(self) -> np.random.Generator:
        """The sample's random generator, created on demand, as not every layout draws."""
        return np.random.Generator(np.random.PCG64(self.seed))  # takes half the time of default_rng


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Base of all layouts: samples to one group of rows with static shapes."""

    def build(
        self, samples: Sequence[Sample], streams: Streams, vocabulary: Vocabulary
    ) -> tuple[Batch, dict[str, float]]:
        """One group (NumPy) and counts to log, such as `trimmed/text` or `tokens`."""
        raise NotImplementedError(f"{type(self).__name__} must define build().")

    def build_groups(
        self, samples: Sequence[Sample], streams: Streams, vocabulary: Vocabulary, num_groups: int
    ) -> tuple[Batch, dict[str, float]]:
        """Several groups of equal size, joined. Override it if building all at once is faster."""
        rows, batches, counts = len(samples) // num_groups, [], {}
        for start in range(0, len(samples), rows):
            batch, more = self.build(samples[start : start + rows], streams, vocabulary)
            batches.append(batch)
            counts = rows_lib.add_counts(counts, more)
        return rows_lib.concatenate(batches), counts


class Streams(NamedTuple):
    """Which streams a task reads and which it predicts."""

    inputs: tuple[str, ...]
    targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """Another set of static shapes of the same task; None = the task's own value."""

    weight: ranges.NonNegative = 1.0
    layout: Layout | None = None
    batch_size: ranges.Count | None = None
    group_rows: ranges.Count | None = None

    def __post_init__(self):
        ranges.check(self)


class Shape(NamedTuple):
    """Everything that determines the static shapes of one variant of a task."""

    layout: Layout
    batch_size: int
    group_rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One source, one layout, one objective, one set of static shapes per variant.

    Fields:
      source: where examples come from.
      inputs, targets: modality names read and predicted (contrastive tasks have inputs only).
      layout, objective: how samples become rows; what is minimised.
      batch_size: rows of the global batch. group_rows: rows of a group.
      weight, interval: share in the mixture (see Mixture); weight 0 = for evaluation alone.
      variants: by name; empty = one variant called "default".
      trainable: patterns over canonical parameter names.
      gradient_rule: how its losses become one gradient; None = that of the run.
      augment: random variations of what is given, by modality, in training batches alone.
      positives_by: modality whose equal values, as encoded, make samples positives of one another
        in contrastive tasks, for all pairs of views, such as captions that repeat. Samples to which
        the source gives an `identity` keep it. Empty = by `identity` alone.
    """

    source: Source
    inputs: tuple[str, ...]
    targets: tuple[str, ...] = ()
    layout: Layout
    objective: Any  # mmjax.objectives.Objective; the data side imports no objective
    batch_size: ranges.Count = 64
    group_rows: ranges.Count = 8
    weight: ranges.NonNegative = dataclasses.field(
        default=1.0, metadata={"identity": "journal", "is_moved": True}
    )
    interval: ranges.Natural = 0
    variants: dict[str, Variant] = dataclasses.field(default_factory=dict)
    trainable: tuple[str, ...] = ("**",)
    learning_rate_scale: ranges.NonNegative = 1.0
    gradient_rule: Any = dataclasses.field(  # mmjax.optim.GradientRule | None
        default=None, metadata={"identity": "numerics", "is_new": True}
    )
    augment: dict[str, Augment] = dataclasses.field(
        default_factory=dict, metadata={"identity": "data", "is_new": True}
    )
    positives_by: str = dataclasses.field(default="", metadata={"identity": "data", "is_new": True})

    def __post_init__(self):
        ranges.check(self)

    def variant_weights(self) -> dict[str, float]:
        """Weights of the variants by name; a task without variants has one called "default"."""
        return {name: v.weight for name, v in self.variants.items()} or {"default": 1.0}

    def shape(self, variant: str = "default") -> Shape:
        """Layout and sizes of a variant; values that it leaves open come from the task."""
        if variant not in self.variant_weights():
            raise ValueError(
                f"Task: variant {variant!r} does not exist; there are"
                f" {', '.join(self.variant_weights())}."
            )
        own = self.variants.get(variant, Variant())
        return Shape(
            own.layout or self.layout,
            own.batch_size or self.batch_size,
            own.group_rows or self.group_rows,
        )

    def shapes(self) -> dict[str, Shape]:
        """`shape` of every variant, by name."""
        return {name: self.shape(name) for name in self.variant_weights()}

    def is_complete(self, there: Collection[str]) -> bool:
        """Whether a sample with these modalities trains anything: with a target and something to
        predict it from, or, without targets, with two to contrast."""
        inputs = [name for name in self.inputs if name in there]
        if self.targets:
            return any(name in there for name in self.targets) and (bool(inputs) or not self.inputs)
        return len(inputs) >= min(2, len(self.inputs))

    def streams(self) -> Streams:
        """Streams that the layout reads and predicts."""
        return Streams(self.inputs, self.targets)
