"""Named activations of the model calls, for gradients that are taken at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmjax.typing import Array

ACTIVATIONS = ("embed", "output")


class Taps:
    """What the lanes of a model make, by `<lane>/<activation>` and the number of the call.

    An array that was given for a name (zeros) is added to the activation, so that the gradient of
    that array is the activation's.

    Fields:
      values: of the calls so far.
    """

    def __init__(self, names: Sequence[str], added: Mapping[str, Array] | None = None):
        self._names, self._added = tuple(names), added
        self.values: dict[str, Array] = {}

    def __call__(self, lane: str, activation: str, x: Array) -> Array:
        """The activation, with what is added to it."""
        if activation not in self._names:
            return x
        calls = sum(name.startswith(f"{lane}/{activation}/") for name in self.values)
        name = f"{lane}/{activation}/{calls}"
        if self._added is not None:
            x = x + self._added[name]
        self.values[name] = x
        return x
