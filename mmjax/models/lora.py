"""LoRA: the module of `layers.LoRA`, and `merge`, which leaves the plain block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.models import contracts, layers
from mmjax.models.block import Stack
from mmjax.models.module import BlockModule, ModelState, param


class Pair(nnx.Module):
    """The matrices A [inputs..., R] and B [R, outputs...] of one change; B is 0 at first."""

    def __init__(self, shape, axes, reduce, rank: int, rngs: nnx.Rngs):
        inputs = [shape[i] for i in reduce]
        outputs = [n for i, n in enumerate(shape) if i not in reduce]
        in_axes = tuple(axes[i] for i in reduce)
        out_axes = tuple(a for i, a in enumerate(axes) if i not in reduce)
        dims = tuple(range(len(inputs)))
        self.a = param(
            rngs, (*inputs, rank), (*in_axes, "unsharded"), math.prod(inputs), dims
        )  # fmt: skip
        self.b = nnx.Param(jnp.zeros((rank, *outputs)), axes=("unsharded", *out_axes), reduce=(0,))


class LoRAModule(BlockModule):
    """A block whose matrices are changed before it is called."""

    def __init__(self, config: layers.LoRA, stack: Stack, rngs: nnx.Rngs):
        self.config = config
        self.block = contracts.made(config.block, stack, rngs)
        pairs, matrices = {}, []
        for path, leaf in nnx.to_flat_state(nnx.state(self.block, nnx.Param)):
            name, axes = "/".join(map(str, path)), leaf.get_metadata()["axes"]
            reduce = leaf.get_metadata().get("reduce", ())
            if not reduce or reduce != tuple(range(len(reduce))) or "expert" in axes:
                continue  # a vector, or one matrix for each expert
            matrices.append(name)
            if config.is_target(name):
                pair = Pair(leaf.shape, axes, reduce, config.rank, rngs)
                pairs[name.replace("/", ".")] = pair
        if not pairs:
            raise ValueError(
                f"LoRA: target_modules={config.target_modules} matches no matrix of"
                f" {type(config.block).__name__}; there are {', '.join(sorted(matrices))}."
            )
        self.lora = nnx.Dict(pairs)

    def _changed(self) -> BlockModule:
        graph, params, state = nnx.split(self.block, nnx.Param, ModelState)
        flat = dict(nnx.to_flat_state(params))
        for name, pair in self.lora.items():
            path = tuple(name.split("."))
            leaf = flat[path]
            change = delta(pair.a[...], pair.b[...], self.config.rank, self.config.alpha)
            flat[path] = leaf.replace(leaf[...] + change.astype(leaf[...].dtype))
        return nnx.merge(graph, nnx.from_flat_state(flat), state)

    def __call__(self, x_BLD, call):
        return self._changed()(x_BLD, call)

    def init_cache(self, rows, length, dtype, memory):
        return self._changed().init_cache(rows, length, dtype, memory)

    def decode_step(self, x_BQD, call, cache):
        return self._changed().decode_step(x_BQD, call, cache)


def delta(a, b, rank: int, alpha: float):
    """alpha / rank A B, in the shape of the matrix that it changes; NumPy or jax arrays."""
    tensordot = np.tensordot if isinstance(a, np.ndarray) else jnp.tensordot
    return tensordot(a, b, axes=1) * (alpha / rank)


def merge(arrays: Mapping[str, Any], config: layers.LoRA) -> dict[str, Any]:
    """Parameters by canonical name of the model whose blocks are `config.block`: every change is
    added to its matrix."""
    out = {name: np.asarray(x) for name, x in arrays.items() if "/lora/" not in name}
    for name, a in arrays.items():
        if "/lora/" in name and name.endswith("/a"):
            block, _, rest = name.partition("/lora/")
            target = f"{block}/{rest[:-2].replace('.', '/')}"
            b = np.asarray(arrays[f"{name[:-2]}/b"])
            out[target] = out[target] + delta(np.asarray(a), b, config.rank, config.alpha)
    return out
