"""Augmentation: random variations of what is given, by modality, in training batches alone.

    Task(..., augment={"image": Pictures(), "text": Texts(drop=0.1)})

A variation depends on (seed, task, epoch, record, modality) alone, so a resume, another number of
workers or hosts, and another mesh give the same bytes. Its random numbers are its own: it changes
neither masks nor the order of records.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmjax.config import ranges
from mmjax.config.error import nearest
from mmjax.data import started
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece

__all__ = ["Augment", "Visit", "check_kind", "check_task", "varied"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Base of all augmentations: a value to the tokens of a random variation of it.

    A value is prepared once and varied at each visit; prepared values are cached as encoded ones
    are. Neither may change the array that it gets.

    Fields:
      like: another modality whose random numbers it shares, so that pictures and their depth are
        cropped alike (give both the same ranges); empty = its own.
    """

    like: str = ""
    # Whether what is varied is the piece of `encode`, which is then cached once for all tasks.
    of_pieces: ClassVar[bool] = False

    def __post_init__(self):
        ranges.check(self)

    def check(self, name: str, task: Any, modalities: Mapping[str, Modality]) -> None:
        """Raises ValueError if it does not suit a modality of a task, or would lie there."""
        del name, task, modalities

    def prepare(self, value: Any, modality: Modality) -> Any:
        """What is kept of a raw value between visits, such as decoded pixels; None = absent."""
        del modality
        return value

    def __call__(self, value: Any, modality: Modality, rng: np.random.Generator) -> Piece | None:
        """Tokens of a variation of a prepared value; all that is random comes from `rng`."""
        raise NotImplementedError(
            f"{type(self).__name__} must define __call__(value, modality, rng), which ends with"
            " `return modality.encode(varied)`."
        )

    @functools.cached_property
    def key(self) -> str:
        """Distinguishes prepared values of several augmentations of one modality."""
        return repr(self)

    def generator(self, name: str, seed: int) -> np.random.Generator:
        """Random numbers of a modality of a sample, unlike those that its layout draws."""
        tag = zlib.crc32((self.like or name).encode())
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(tag,))))


class Visit(NamedTuple):
    """How a record is read: what is random, and what makes it a positive of others."""

    augment: Mapping[str, Augment] = {}  # by modality
    seed: int = 0  # of the sample
    turn: int = 0  # which of several values, such as captions
    alike: str = ""  # modality whose equal values make positives


def check_kind(augment: Augment, name: str, modality: Modality, *kinds: type) -> None:
    """Raises ValueError unless the modality is of one of the kinds."""
    if not isinstance(modality, kinds):
        own = type(augment).__name__
        raise ValueError(
            f"augment[{name!r}]={own}, but {name!r} is of {type(modality).__name__}, and {own} is"
            f" for {' and '.join(kind.__name__ for kind in kinds)}; give one of its kind, or none."
        )


def varied(modality: Modality) -> Modality:
    """What an augmentation varies: of codes that are computed from another modality, that one."""
    return getattr(modality, "base", modality) if modality.offline else modality


def check_task(task: Any, modalities: Mapping[str, Modality]) -> None:
    """Raises ValueError for an augmentation that a task cannot have, and for a modality of
    `positives_by` that cannot be compared."""
    reads = dict.fromkeys((*task.inputs, *task.targets))
    for name, augment in task.augment.items():
        if name not in reads:
            raise ValueError(
                f"augment names {name!r}, which this task does not read{nearest(name, reads)}"
            )
        if not isinstance(augment, Augment):
            raise ValueError(
                f"augment[{name!r}] is a {type(augment).__name__}, no Augment; see"
                " mmjax.data.augment."
            )
        if modalities[name].offline and not started.tokenizes():
            raise ValueError(
                f"augment[{name!r}]={type(augment).__name__}, but the ids of {name!r} are computed"
                " once, before training, and read from a table, so it would have no effect;"
                " augment the modality that they encode, as a stream of its own, or compute the"
                " ids of variations by mmjax tokenize --crops."
            )
        if augment.like and augment.like not in task.augment:
            raise ValueError(
                f"augment[{name!r}].like={augment.like!r} is not augmented here"
                f"{nearest(augment.like, task.augment)}"
            )
        augment.check(name, task, {n: varied(m) for n, m in modalities.items()})
    if task.positives_by and task.positives_by not in modalities:
        raise ValueError(
            f"positives_by={task.positives_by!r} is not in modalities"
            f"{nearest(task.positives_by, modalities)}"
        )
    if task.positives_by and modalities[task.positives_by].offline:
        raise ValueError(
            f"positives_by={task.positives_by!r} has ids that are computed before training, which"
            " differ for nearly equal values; name the modality of the values, such as a Text."
        )
