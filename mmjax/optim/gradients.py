"""The GradientRule seam: how several losses of one step become one gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mmjax.typing import Array, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientRule:
    """Base of all gradient rules. Without one a step has one backward pass over the sum."""

    def combine(
        self, losses: dict[str, Array], pullback: Callable[[dict[str, Array]], PyTree]
    ) -> PyTree:
        """Gradients from the scalar losses; `pullback(weights)` is one backward pass."""
        raise NotImplementedError(f"{type(self).__name__} must define combine().")
