"""The module of a `FlowDecoder`, and how a value is drawn with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import convolution, flow_decoder
from mmjax.typing import Array

OCTAVES = 6  # of the waves that tell the time


class FlowModule(nnx.Module):
    """Velocities of arrays, at the grid of the codes."""

    def __init__(
        self, config: flow_decoder.FlowDecoder, model: Any, shape: Sequence[int], rngs: nnx.Rngs
    ):
        self.code_grid = model.code_grid
        cell = math.prod(shape) // model.num_cells
        given = cell + model.quantizer.width + 2 * OCTAVES
        sized = dataclasses.replace(model, width=config.width, critic=None, flow=None)
        self.side = convolution.Side(sized, given, cell, config.layers, rngs)

    def __call__(self, x: Array, time_B: Array, vector_BLD: Array) -> Array:
        """[B, ..., C] of arrays at these times, by the vectors of their codes."""
        cells = convolution.taken_apart(x, self.code_grid)
        grid = cells.shape[:-1]
        angle = time_B[:, None] * jnp.asarray([[math.pi / 2 * 2**i for i in range(OCTAVES)]])
        wave = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1).astype(x.dtype)
        wave = wave.reshape(len(x), *(1 for _ in grid[1:]), -1)
        wave = jnp.broadcast_to(wave, (*grid, wave.shape[-1]))
        vector = vector_BLD.astype(x.dtype).reshape(*grid, -1)
        cells = self.side(jnp.concatenate([cells, vector, wave], axis=-1))
        return convolution.put_together(cells, x.shape[1:])


def integrated(
    velocity: Callable[[Array, Array], Array], x: Array, steps: int, solver: str
) -> Array:
    """x at t = 1 of dx/dt = velocity(x, t), from that at t = 0."""
    size = 1.0 / steps

    def advance(x: Array, time: Array) -> tuple[Array, None]:
        first = velocity(x, time)
        if solver == "euler":
            return x + size * first, None
        second = velocity(x + size * first, time + size)
        return x + size / 2 * (first + second), None

    return jax.lax.scan(advance, x, jnp.arange(steps, dtype=x.dtype) * size)[0]


def sampled(
    config: flow_decoder.FlowDecoder,
    velocity: Callable[[Array, Array, Array], Array],
    vector_BLD: Array,
    shape: tuple[int, int],
    seed: Array | int,
) -> Array:
    """Pieces [B, J, P] of the vectors of codes; `shape` is (J, P)."""
    noise = jax.random.normal(jax.random.key(seed), shape)
    noise = jnp.broadcast_to(noise[None], (len(vector_BLD), *shape))

    def at(x: Array, time: Array) -> Array:
        return velocity(x, jnp.broadcast_to(time, (len(x),)), vector_BLD)

    return integrated(at, noise, config.steps, config.solver)
