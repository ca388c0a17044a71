"""Strided convolutions along time: a codec of waveforms (SoundStream, Zeghidour et al. 2021,
arXiv 2107.03312; EnCodec, Defossez et al. 2022, arXiv 2210.13438).

Some thousand samples a code are too many for one matrix: a stage has residual units whose taps lie
1, 3 and 9 samples apart, then a convolution over two strides, and doubles the width. The decoder
mirrors this. The nonlinearity is snake, x + sin(ax)^2 / a, which goes on periodically (Ziyin et al.
2020, arXiv 2006.08195; in codecs Kumar et al. 2023, arXiv 2306.06546). Nothing is normed in the
stages. Their weights are few and lie whole on each device.

Letters here: I samples, C their width, Y codes, Z 1.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import autoencoder, blocks
from mmjax.parallel import rules
from mmjax.typing import Array

DILATIONS = (1, 3, 9)
ENDS = 7  # taps of the first and the last convolution


class Convolution(nnx.Module):
    """Along time, of XLA; `stride` samples become one."""

    def __init__(self, taps, width, out, rngs, stride=1, dilation=1, gain=1.0):
        self.stride, self.dilation = stride, dilation
        axes = ("unsharded",) * 3
        self.kernel = blocks.param(rngs, (taps, width, out), axes, taps * width, (0, 1), gain)
        self.bias = nnx.Param(jnp.zeros((out,)), axes=axes[:1], reduce=())
        missing = (taps - 1) * dilation + 1 - stride
        self.padding = (missing // 2, missing - missing // 2)

    def __call__(self, x_BIC: Array) -> Array:
        y = jax.lax.conv_general_dilated(
            x_BIC, self.kernel[...].astype(x_BIC.dtype), (self.stride,), (self.padding,),
            rhs_dilation=(self.dilation,), dimension_numbers=("NHC", "HIO", "NHC"),
        )  # fmt: skip
        return y + self.bias[...].astype(y.dtype)[None, None, :]


class Snake(nnx.Module):
    """x + sin(ax)^2 / a, with a > 0 of each channel."""

    def __init__(self, width: int):
        self.log_rate = nnx.Param(jnp.zeros((width,)), axes=("unsharded",), reduce=())

    def __call__(self, x_BIC: Array) -> Array:
        return snake(x_BIC, self.log_rate[...][None, None, :])


@jax.checkpoint  # of which the backward pass keeps the input alone
def snake(x: Array, log_rate: Array) -> Array:
    """x + sin(ax)^2 / a with a = exp(log_rate), in float32, by a series to 1e-6 within a period:
    the sine of XLA took most of the time of a step on a CPU."""
    rate = jnp.exp(log_rate)
    turns = rate * x.astype(jnp.float32) / math.pi
    square = jnp.square(turns - jax.lax.stop_gradient(jnp.round(turns)))
    total = jnp.zeros_like(square)
    for k in range(9, 0, -1):  # of (1 - cos) / 2
        term = (-1) ** (k + 1) * (2 * math.pi) ** (2 * k) / (2 * math.factorial(2 * k))
        total = (total + term) * square
    return x + (total / rate).astype(x.dtype)


class Unit(nnx.Module):
    """Snake, convolution, snake, matrix, added to the input."""

    def __init__(self, config: autoencoder.Autoencoder, width: int, dilation: int, rngs: nnx.Rngs):
        depth = len(config.strides) * len(DILATIONS)
        self.first, self.last = Snake(width), Snake(width)
        self.convolution = Convolution(config.kernel, width, width, rngs, dilation=dilation)
        self.out = Convolution(1, width, width, rngs, gain=depth**-0.5)

    def __call__(self, x_BIC: Array) -> Array:
        y = self.convolution(self.first(x_BIC))
        return rules.constrain_batch(x_BIC + self.out(self.last(y)))


def _units(config: autoencoder.Autoencoder, width: int, rngs: nnx.Rngs) -> list[Unit]:
    return [Unit(config, width, dilation, rngs) for dilation in DILATIONS]


class Encoder(nnx.Module):
    """Cells of samples [B, Y, 1, C] down the stages, then through a `side` of the code grid."""

    def __init__(self, config: autoencoder.Autoencoder, cell: int, side: nnx.Module, rngs):
        self.steps = math.prod(config.strides)  # of a code, where the first stage begins
        width = config.width >> len(config.strides)
        self.into = Convolution(ENDS, cell // self.steps, width, rngs)
        layers: list[nnx.Module] = []
        for stride in config.strides:
            layers += [*_units(config, width, rngs), Snake(width)]
            layers.append(Convolution(2 * stride, width, 2 * width, rngs, stride))
            width *= 2
        self.layers, self.side = nnx.List(layers), side

    def __call__(self, x_BYZC: Array) -> Array:
        rows, codes = x_BYZC.shape[:2]
        x_BIC = self.into(x_BYZC.reshape(rows, codes * self.steps, -1))
        for layer in self.layers:
            x_BIC = layer(x_BIC)
        return self.side(x_BIC[:, :, None])


class Decoder(nnx.Module):
    """Codes [B, Y, 1, D] through a `side` of the code grid, then up the stages to cells."""

    def __init__(self, config: autoencoder.Autoencoder, cell: int, side: nnx.Module, rngs):
        width, layers = config.width, []
        for stride in reversed(config.strides):
            # What a transposed convolution is, of all samples of a cell at once (Shi et al. 2016).
            rising = Convolution(3, width, stride * width // 2, rngs)
            width //= 2
            layers += [Snake(2 * width), rising, *_units(config, width, rngs)]
        self.side, self.layers, self.width = side, nnx.List(layers), config.width
        self.last = Snake(width)
        self.out = Convolution(ENDS, width, cell // math.prod(config.strides), rngs)

    def __call__(self, x: Array) -> Array:
        rows, codes = x.shape[:2]
        x_BIC, width = self.side(x)[:, :, 0], self.width
        for layer in self.layers:
            x_BIC = layer(x_BIC)
            if isinstance(layer, Convolution):  # a row has the samples of a cell
                width //= 2
                x_BIC = x_BIC.reshape(rows, -1, width)
        return self.out(self.last(x_BIC)).reshape(rows, codes, 1, -1)
