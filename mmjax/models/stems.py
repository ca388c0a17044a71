"""Stems: what turns the continuous pieces of a stream into vectors of the model's width.

Letters here: Y, X rows and columns of the picture that the pieces of a sample make, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from etils import epy

from mmjax.config import ranges
from mmjax.models.embed import Init
from mmjax.typing import Array, General, Tokens, TokenSpec, Values

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from mmjax.models import fused
    from mmjax.parallel import rules

__all__ = ["Convolutions", "Patches", "Stage", "Stem"]

PIECE = "piece"  # the leaf of the last matrix, into the width of the model


def key(number: int, leaf: str) -> str:
    """The name of a leaf among those of all streams."""
    return f"s{number}" if leaf == PIECE else f"s{number}_{leaf}"


def leaf(key: str) -> tuple[int, str]:
    """The number of the stream and the leaf that have a name."""
    first, _, rest = key.partition("_")
    return int(first[1:]), rest or PIECE


def own(params: Mapping[str, Array], number: int) -> dict[str, Array]:
    """The parameters of one stream, by leaf."""
    return {leaf(key)[1]: x for key, x in params.items() if leaf(key)[0] == number}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stem:
    """Base of all stems: parameters by leaf name, and what they make of pieces."""

    def check(self, spec: TokenSpec) -> None:
        """Raises ValueError if it cannot read the pieces of a stream."""

    def init(self, key: Array, spec: TokenSpec, width: int) -> Init:
        """Parameters for the pieces of a stream; the leaf `piece` leads into the width."""
        raise NotImplementedError(f"{type(self).__name__} must define init().")

    def apply(
        self, params: dict[str, Array], values: Values, tokens: Tokens, spec: TokenSpec, dtype
    ) -> Array:
        """Vectors [B, J, D] of pieces [B, J, P] of a view."""
        raise NotImplementedError(f"{type(self).__name__} must define apply().")

    def flops(self, spec: TokenSpec, width: int, rows: int, pieces: int) -> float:
        """FLOPs of a forward pass over `pieces` pieces in each of so many rows."""
        raise NotImplementedError(f"{type(self).__name__} must define flops().")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patches(Stem):
    """One matrix for each piece by itself (Dosovitskiy et al. 2021)."""

    def init(self, key, spec, width):
        kernel = jax.random.normal(key, (spec.width, width)) * spec.width**-0.5
        return {PIECE: (kernel, ("piece", "embed"))}

    def apply(self, params, values, tokens, spec, dtype):
        return fused.project(values.value_BJP.astype(dtype), params[PIECE])

    def flops(self, spec, width, rows, pieces):
        return 2.0 * rows * pieces * spec.width * width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolutions(Stem):
    """Convolutions over the picture that the pieces make, then a matrix for each piece.

    Xiao et al. 2021, "Early convolutions help transformers see better": each stage is a 3 x 3
    convolution of stride 2, a norm over channels and GELU. Strides stop along an axis of a piece
    that can no longer be halved; what is left of a piece goes through the matrix. Pieces that the
    view does not show count as zeros, so that nothing of what is to be predicted shines through.

    Fields:
      channels: of each stage.

    >>> from mmjax.typing import TokenSpec
    >>> image = TokenSpec(name="image", kind="grid", max_tokens=4, width=48, grid=(1, 2, 2),
    ...                   piece=(4, 4, 3))
    >>> Convolutions(channels=(8, 16)).flops(image, 32, rows=1, pieces=4)
    20224.0
    """

    channels: tuple[ranges.Count, ...] = (32, 64, 128)

    def __post_init__(self):
        ranges.check(self)
        if not self.channels:
            raise ValueError(
                "Convolutions: channels=() has no stage; give (32, 64, 128), or use Patches()."
            )

    def check(self, spec):
        if spec.grid is None or not spec.piece:
            raise ValueError(
                f"Convolutions: stream {spec.name!r} has grid={spec.grid} and piece={spec.piece},"
                " so its pieces make no picture; use Patches(), or a modality whose spec says both."
            )

    def init(self, key, spec, width):
        keys, found = jax.random.split(key, len(self.channels) + 1), {}
        for i, stage in enumerate(self.stages(spec)):
            fan_in = stage.taps * stage.wide
            kernel = jax.random.normal(keys[i], (fan_in, stage.out)) * (2 / fan_in) ** 0.5
            found[f"kernel_{i}"] = (kernel, ("unsharded", "unsharded"))
            found[f"scale_{i}"] = (jnp.ones((stage.out,)), ("unsharded",))
            found[f"bias_{i}"] = (jnp.zeros((stage.out,)), ("unsharded",))
        left = self._left(spec)
        kernel = jax.random.normal(keys[-1], (left, width)) * left**-0.5
        return found | {PIECE: (kernel, ("piece", "embed"))}

    def apply(self, params, values, tokens, spec, dtype):
        if isinstance(tokens.rule, General):
            raise ValueError(
                f"Convolutions: a row of this view may hold several samples, whose pieces of"
                f" {spec.name!r} would become one picture; use Patches(), or a layout with one"
                " sample a row."
            )
        cell_BJ, rows_B = _cells(values, tokens, spec), jnp.arange(len(values.slot_BJ))[:, None]
        cells, (_, h, w) = _num_cells(spec), frames(spec)
        high, wide, channels = spec.piece
        shown = values.value_BJP.astype(dtype)
        x = jnp.zeros((len(shown), cells, shown.shape[-1]), dtype)
        x = rules.constrain_batch(x.at[rows_B, cell_BJ].set(shown, mode="drop"))
        x = x.reshape(-1, h, w, high, wide, channels).transpose(0, 1, 3, 2, 4, 5)
        x_BYXC = x.reshape(-1, h * high, w * wide, channels)
        for i, stage in enumerate(self.stages(spec)):
            x_BYXC = _convolved(x_BYXC, params[f"kernel_{i}"].astype(dtype), stage)
            x_BYXC = _normed(x_BYXC, params[f"scale_{i}"], params[f"bias_{i}"])
            x_BYXC = rules.constrain_batch(jax.nn.gelu(x_BYXC))
            high, wide = high // stage.stride[0], wide // stage.stride[1]
        x = x_BYXC.reshape(-1, h, high, w, wide, self.channels[-1]).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(len(shown), cells, -1)[rows_B, jnp.minimum(cell_BJ, cells - 1)]
        return fused.project(x, params[PIECE])

    def flops(self, spec, width, rows, pieces):
        self.check(spec)
        t, h, w = frames(spec)
        y, x, total = h * spec.piece[0], w * spec.piece[1], 0.0
        for stage in self.stages(spec):
            y, x = y // stage.stride[0], x // stage.stride[1]
            total += 2.0 * t * y * x * stage.taps * stage.wide * stage.out
        return rows * (total + 2.0 * pieces * self._left(spec) * width)

    def stages(self, spec: TokenSpec) -> list[Stage]:
        """Each convolution: along an axis of one element there is nothing to convolve."""
        _, h, w = frames(spec)
        (high, wide, channels), stages = spec.piece, []
        for out in self.channels:
            stride = (2 - high % 2, 2 - wide % 2)
            reach = (int(h * high > 1), int(w * wide > 1))
            stages.append(Stage(channels, out, stride, reach))
            high, wide, channels = high // stride[0], wide // stride[1], out
        return stages

    def _left(self, spec: TokenSpec) -> int:
        """Numbers of a piece after the stages."""
        high, wide, _ = spec.piece
        for stage in self.stages(spec):
            high, wide = high // stage.stride[0], wide // stage.stride[1]
        return high * wide * self.channels[-1]


class Stage(NamedTuple):
    """One convolution: its channels, its stride, and how far it reaches beyond a cell."""

    wide: int
    out: int
    stride: tuple[int, int]
    reach: tuple[int, int]

    @property
    def taps(self) -> int:
        return (2 * self.reach[0] + 1) * (2 * self.reach[1] + 1)


def frames(spec: TokenSpec) -> tuple[int, int, int]:
    """(pictures, rows, columns) of the pieces of a sample: a sound is one picture over time."""
    t, h, w = spec.grid or (1, 1, 1)
    return (1, t, w) if h == 1 else (t, h, w)


def _num_cells(spec: TokenSpec) -> int:
    return int(np.prod(spec.grid or ()))


def _cells(values: Values, tokens: Tokens, spec: TokenSpec) -> Array:
    """Place of each piece in the grid of its stream [B, J]; unused ones lie beyond its end."""
    length = tokens.position_BLA.shape[1]
    at = jnp.minimum(values.slot_BJ, length - 1)[:, :, None]
    position_BJA = jnp.take_along_axis(tokens.position_BLA, at, axis=1).astype(jnp.int32)
    _, h, w = spec.grid or (1, 1, 1)
    cell_BJ = (position_BJA[..., 0] * h + position_BJA[..., 1]) * w + position_BJA[..., 2]
    return jnp.where(values.slot_BJ < length, cell_BJ, _num_cells(spec))


def _convolved(x_BYXC: Array, kernel: Array, stage: Stage) -> Array:
    """A zero-padded convolution, as one product of the neighbours laid side by side: gradients of
    XLA's own convolutions are many times slower on a CPU."""
    (down, right), (dy, dx), (rows, columns) = stage.reach, stage.stride, x_BYXC.shape[1:3]
    padded = jnp.pad(x_BYXC, ((0, 0), (down, down), (right, right), (0, 0)))
    shifted = [
        padded[:, y : y + rows : dy, x : x + columns : dx]
        for y in range(2 * down + 1)
        for x in range(2 * right + 1)
    ]
    return jnp.matmul(jnp.concatenate(shifted, axis=-1), kernel)


def _normed(x: Array, scale: Array, bias: Array) -> Array:
    """Layer norm over channels, in float32."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
    return (wide * scale[None, None, None, :] + bias[None, None, None, :]).astype(x.dtype)
