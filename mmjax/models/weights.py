"""Weights as blocks use them: in the compute dtype, and whole along the axes of the batch.

A weight that lies in parts along `fsdp` is cast first and gathered then, by a constraint on the
weight: left to itself the partitioner gathers float32, or slices each product into steps of a ring.
Inside a scan this happens a layer at a time. Gradients leave in parts, in the dtype in which the
weight came. (FSDP: Zhao et al. 2023, arXiv 2304.11277; by constraints as in GSPMD, Xu et al. 2021.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.parallel import rules
from mmjax.typing import Array, PyTree

ATTENTION = "attention"  # the name of what attention gives, for policies of rematerialisation


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """How the weights of a model lie, and how they are used.

    Fields:
      specs: partition spec of each parameter, a tree of their structure; None = of no mesh.
      dtype: of products. reduce_dtype: in which gradients are added up over devices.
    """

    specs: PyTree | None = None
    dtype: str = "float32"
    reduce_dtype: str = "float32"

    @property
    def is_plain(self) -> bool:
        """Whether weights are used as they are."""
        return self.dtype == "float32" and (self.specs is None or rules.is_one_device())

    def below(self, *path: Any) -> Placement:
        """Of a part of the parameters."""
        specs = self.specs
        if specs is not None:
            specs = functools.reduce(lambda tree, key: tree[key], path, specs)
        return dataclasses.replace(self, specs=specs)

    def ready(self, x: Array, is_matrix: bool = True) -> Array:
        """One parameter, ready to use; `self.specs` is its own. Only matrices change dtype."""
        if self.is_plain:
            return x
        dtype, reduce_dtype = (self.dtype, self.reduce_dtype) if is_matrix else (x.dtype, x.dtype)
        return _ready(jnp.asarray(x), self.specs, jnp.dtype(dtype), jnp.dtype(reduce_dtype))

    def layer(self, params: nnx.State) -> Callable[[PyTree], PyTree]:
        """What makes the parameters of one layer of a stack ready; `params` are the stacked ones,
        with their metadata, and `self.specs` theirs."""
        if self.is_plain:
            return lambda layer: layer
        flat = nnx.to_flat_state(params)
        matrices = [bool(variable.get_metadata().get("reduce")) for _, variable in flat]
        tree = jax.tree.structure(nnx.as_pure(params))
        specs = [None] * len(flat) if self.specs is None else tree.flatten_up_to(self.specs)

        def make(layer: PyTree) -> PyTree:
            leaves = zip(tree.flatten_up_to(layer), matrices, specs, strict=True)
            one = lambda x, m, s: self._of(s).ready(x, m)
            return tree.unflatten([one(x, m, s) for x, m, s in leaves])

        return make

    def _of(self, spec: jax.sharding.PartitionSpec | None) -> Placement:
        """Of one layer: without the dim of layers."""
        if spec is not None:
            spec = jax.sharding.PartitionSpec(*spec[1:])
        return dataclasses.replace(self, specs=spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _ready(x: Array, spec, dtype, reduce_dtype) -> Array:
    whole = rules.constrain(x.astype(dtype), rules.gathered(spec))
    return whole.astype(reduce_dtype)  # a product casts its weight back, and gives such a gradient


def _forward(x, spec, dtype, reduce_dtype):
    return _ready(x, spec, dtype, reduce_dtype), jnp.zeros((0,), x.dtype)


def _backward(spec, dtype, reduce_dtype, like, d):
    # The sum over devices is taken by what follows its product first, so it leaves in parts.
    return (rules.constrain(d, spec).astype(like.dtype),)


_ready.defvjp(_forward, _backward)


def remat(body: Callable, policy: str, placement: Placement) -> Callable:
    """A layer with what it keeps for the backward pass; the rest is made anew there.

    Args:
      policy: `none` keeps everything but ready weights, so that those of all layers are never in
        memory at once, and so does `auto`, of which nobody has made a choice; `dots` keeps what
        products with weights and attention give; `attention` keeps what attention gives; `full`
        keeps nothing. All keep the input of the layer.
    """
    if policy in ("none", "auto"):
        return body if placement.is_plain else jax.checkpoint(body, policy=_all_but_weights)
    policies = jax.checkpoint_policies
    attention = policies.save_only_these_names(ATTENTION)
    dots = policies.dots_with_no_batch_dims_saveable
    keep = {
        "dots": policies.save_from_both_policies(dots, attention),
        "attention": attention,
        "full": None,
    }
    return jax.checkpoint(body, policy=keep[policy])


CHEAP = {"sharding_constraint", "convert_element_type", "copy"}


def _all_but_weights(primitive, *_, **params) -> bool:
    inner = params.get("call_jaxpr")  # of `_ready`, which has its own derivative
    if inner is not None and {e.primitive.name for e in inner.eqns} <= CHEAP:
        return False
    return primitive.name not in CHEAP
