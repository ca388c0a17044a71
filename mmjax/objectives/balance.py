"""Weights of targets, so that a loss is a plain sum over the global batch."""

from __future__ import annotations

from etils import epy

from mmjax.typing import Batch

with epy.lazy_imports():
    import jax.numpy as jnp


def normalise_weights(batch: Batch, balance: str = "stream") -> Batch:
    """Target weights of the global batch, so that a loss is a plain sum.

    `stream`: each declared target stream sums to 1 / (number of streams); `token`: all together
    sum to 1. A stream without targets stays 0.
    """
    sums = {name: jnp.sum(t.weight_WU) for name, t in batch.targets.items()}
    if balance == "token":
        everything = sum(sums.values(), jnp.zeros(()))
        scale = {name: 1.0 / jnp.maximum(everything, 1e-9) for name in sums}
    else:
        scale = {name: 1.0 / jnp.maximum(s, 1e-9) / len(sums) for name, s in sums.items()}
    targets = {
        name: t._replace(weight_WU=t.weight_WU * scale[name]) for name, t in batch.targets.items()
    }
    return batch._replace(targets=targets)
