"""Actions of robots as sequences of ids, as in RT-1 (Brohan et al. 2022) and RT-2 (2023)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given, sequence
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Actions"]

MISSING = 0  # code of a dimension, before those of its bins
ROUNDING = 1e-6  # of a range: float32 may lie beyond its ends by so much
KEYS = {"actions", "mask"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actions(Modality):
    """One token per step and dimension: the number of one of `bins` equal bins of its range.

    A bin decodes to its middle, so that numbers come back to within half a bin. Steps that the mask
    calls missing have an id of their own in each dimension. Steps beyond `max_steps` are cut from
    the end, and their tokens counted. No step is the end alone.

    Fields:
      dims: name -> (lowest, highest) value.
      bins: ids of a dimension, beside that of a missing step.
      max_steps: largest number of steps.
      clip: whether a value beyond its range becomes the end of it, as in RT-1; otherwise it is
        refused.
      num_sentinels: ids for masked spans; must exceed the runs of a masked sequence.

    >>> actions = Actions(dims={"x": (-1, 1), "grip": (0, 1)}, bins=4, num_sentinels=0)
    >>> piece = actions.encode([[-1, 0.3]])
    >>> piece.ids_L, actions.decode(piece)["actions"].tolist()
    (array([2, 8, 0], dtype=int32), [[-0.75, 0.375]])
    """

    dims: dict[str, tuple[ranges.Finite, ranges.Finite]] = dataclasses.field(default_factory=dict)
    bins: ranges.Count = 256
    max_steps: ranges.Count = 16
    clip: bool = False
    num_sentinels: ranges.Natural = 16

    def __post_init__(self):
        ranges.check(self)
        if not self.dims:
            raise ValueError("Actions: dims={} says nothing; name at least one dimension.")
        for name, (low, high) in self.dims.items():
            if not low < high:
                raise ValueError(f"Actions: dims[{name!r}]={(low, high)}; give (lowest, highest).")

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream: ids for each dimension, of which the first means a missing step."""
        num_codes = len(self.dims) * (1 + self.bins)
        max_tokens = self.max_steps * len(self.dims) + 1
        return sequence.spec(name, num_codes, max_tokens, self.num_sentinels)

    def encode(self, value: Any) -> Piece | None:
        """Ids int32 (steps * dims + 1,), the end id last; position (p, p, p).

        Args:
          value: numbers (steps, dims), or {"actions": these, "mask": bool (steps,)}, where False
            means a step that is missing, whose numbers may be anything; None = absent.

        Raises ValueError for other shapes and keys, NaN, infinity, and values beyond their range
        unless they are clipped.
        """
        if value is None:
            return None
        actions, mask = self._checked(value)
        shares = ((actions - self._low) / self._span).clip(0, 1)
        places = np.minimum((shares * self.bins).astype(np.int32), self.bins - 1)
        codes = np.where(mask[:, None], 1 + places, MISSING) + self._starts
        kept = codes[: self.max_steps]
        return sequence.piece(kept.reshape(-1), self.num_sentinels, num_cut=codes.size - kept.size)

    def adapted(self, value: Any) -> str:
        """How many values are clipped, and how many steps are cut."""
        actions, mask = self._checked(value)
        count, steps = int(self._is_beyond(actions)[mask].sum()), len(actions)
        parts = [f"{count} values are clipped to their ranges"] * bool(count)
        parts += [f"{steps} steps are cut to {self.max_steps}"] * (steps > self.max_steps)
        return "; ".join(parts)

    def decode(self, piece: Piece) -> dict[str, np.ndarray]:
        """{"actions": float32 (steps, dims), "mask": bool (steps,)}; zeros where steps are missing.

        Steps whose tokens are broken are left out; one with a missing dimension is missing.
        """
        steps: list[list[int]] = []
        step: list[int] = []
        for code in sequence.codes(piece, "Actions", self.num_sentinels).tolist():
            dim, place = divmod(code, 1 + self.bins)
            if dim != len(step):
                step = []
            if dim == len(step):
                step.append(place)
            if len(step) == len(self.dims):
                steps.append(step)
                step = []
        places = np.array(steps, np.int64).reshape(-1, len(self.dims))
        mask = (places != MISSING).all(axis=1)
        actions = self._low + (places - 0.5) / self.bins * self._span
        return {"actions": np.where(mask[:, None], actions, 0).astype(np.float32), "mask": mask}

    def read(self, item: str) -> Any:
        """Numbers (steps, dims) of an .npy file; or what a JSON file or JSON text holds.

        Raises ValueError if it cannot be read.
        """
        if item.lower().endswith(".npy"):
            return given.read_array("Actions", item)
        return sequence.read("Actions", item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """A JSON file: {"actions": [[...], ...], "mask": [...]}."""
        actions, mask = self._checked(value)
        made = {"actions": actions.round(6).tolist(), "mask": mask.tolist()}
        return sequence.write(made, stem)

    def _checked(self, value: Any) -> tuple[np.ndarray, np.ndarray]:
        """Float64 (steps, dims), at the low ends where missing, and bool (steps,)."""
        rule = f"(steps, {len(self.dims)})"
        mask: Any = None
        if isinstance(value, Mapping):
            if set(value) - KEYS or "actions" not in value:
                raise ValueError(
                    f"Actions: a dict of {', '.join(map(str, value))}; give 'actions' and 'mask'."
                )
            value, mask = value["actions"], value.get("mask")
        actions = given.array("Actions", value, rule).astype(np.float64)
        if actions.shape == (0,):
            actions = actions.reshape(0, len(self.dims))
        if actions.ndim != 2 or actions.shape[1] != len(self.dims):
            raise ValueError(f"Actions: an array of shape {actions.shape}; give numbers {rule}.")
        mask = np.ones(len(actions), bool) if mask is None else np.asarray(mask)
        if mask.shape == (0,):
            mask = mask.astype(bool)
        if mask.dtype != bool or mask.shape != (len(actions),):
            raise ValueError(
                f"Actions: a mask of shape {mask.shape} and type {mask.dtype}; give bool"
                f" ({len(actions)},)."
            )
        actions = np.where(mask[:, None], actions, self._low)
        if not np.isfinite(actions).all():
            raise ValueError("Actions: numbers hold NaN or infinity; repair them, or give a mask.")
        is_beyond = self._is_beyond(actions)
        if is_beyond.any() and not self.clip:
            step, dim = np.argwhere(is_beyond)[0]
            name = list(self.dims)[dim]
            low, high = self.dims[name]
            raise ValueError(
                f"Actions: {name}={actions[step, dim]:g} is out of range; give {low:g}..{high:g},"
                " or say clip=True."
            )
        return actions, mask

    def _is_beyond(self, actions: np.ndarray) -> np.ndarray:
        shares = (actions - self._low) / self._span
        return (shares < -ROUNDING) | (shares > 1 + ROUNDING)

    @functools.cached_property
    def _low(self) -> np.ndarray:
        return np.array([low for low, _ in self.dims.values()], np.float64)

    @functools.cached_property
    def _span(self) -> np.ndarray:
        return np.array([high - low for low, high in self.dims.values()], np.float64)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """The first code of each dimension."""
        return np.arange(len(self.dims), dtype=np.int32) * (1 + self.bins)
