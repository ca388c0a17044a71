"""LoRA (Hu et al. 2021) on any projection of the ordinary block, and the merge that undoes it."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from mmjax.models import Block
from mmjax.models.block import BlockConfig
from mmjax.models.module import BlockModule, param


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(BlockConfig):
    """W + A B for the named projections [D, ...] of self-attention; B is zero at first."""

    rank: int = 2
    targets: tuple[str, ...] = ("query", "value")
    causal: bool = True
    isolate: bool = False

    def inner(self):
        fields = {"causal": self.causal, "isolate": self.isolate}
        return Block(lane=self.lane, reads=self.reads, **fields)

    def make(self, stack, rngs):
        return LowRankModule(self, stack, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        return self.inner().flops_per_token(stack, length, read_length)

    @property
    def is_causal(self):
        return self.causal

    def canonical(self, path):
        return path.removeprefix("block/")  # as in a model without


class LowRankModule(BlockModule):
    def __init__(self, config, stack, rngs):
        self.targets, self.block = config.targets, config.inner().make(stack, rngs)
        for name in self.targets:
            shape, axes = getattr(self.block.attention, name).shape, ("heads", "head_dim")
            a = param(rngs, (shape[0], config.rank), ("embed", "unsharded"), shape[0], (0,))
            b = nnx.Param(
                jnp.zeros((config.rank, *shape[1:])), axes=("unsharded", *axes), reduce=(0,)
            )
            setattr(self, f"{name}_a", a)
            setattr(self, f"{name}_b", b)

    def _changed(self):
        graph, state = nnx.split(self.block)
        flat = dict(nnx.to_flat_state(state))
        for name in self.targets:
            leaf = flat["attention", name]
            change = jnp.tensordot(
                getattr(self, f"{name}_a")[...], getattr(self, f"{name}_b")[...], 1
            )
            flat["attention", name] = leaf.replace(leaf[...] + change)
        return nnx.merge(graph, nnx.from_flat_state(flat))

    def __call__(self, x_BLD, call):
        return self._changed()(x_BLD, call)

    def init_cache(self, *args):
        return self._changed().init_cache(*args)

    def decode_step(self, *args):
        return self._changed().decode_step(*args)


def merge(arrays, config):
    """Parameters by canonical name, those of the plain block."""
    out = {n: x for n, x in arrays.items() if n.split("/")[-1][-2:] not in ("_a", "_b")}
    for name, a in arrays.items():
        if name.endswith("_a"):
            block, _, target = name[:-2].rpartition("/")
            change = jnp.tensordot(a, arrays[f"{name[:-2]}_b"], 1)
            out[f"{block}/attention/{target}"] = out[f"{block}/attention/{target}"] + change
    return out
