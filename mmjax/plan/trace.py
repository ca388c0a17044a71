"""What jax keeps of a forward pass for the backward pass, read from the traced program.

Tracing compiles nothing and needs no backend. It knows every block, objective and remat policy,
since it reads what they do; it knows nothing of what XLA makes of it (`model.KEPT` says).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.extend
import numpy as np

from mmjax import step as step_lib
from mmjax.run.program import Program, named_parts
from mmjax.typing import Batch

Var = jax.extend.core.Var


class Residual(NamedTuple):
    """An array that is kept.

    Fields:
      rows: its dim of rows or groups; -1 = none that is known. cut: its dim of heads or of the
        feed-forward, which the tensor axis cuts; -1 = none.
    """

    shape: tuple[int, ...]
    itemsize: int
    rows: int
    cut: int

    def local(self, shards: int, tensor: int) -> tuple[int, ...]:
        """The part of a device; what has no dim to cut is cut all the same, along the first."""
        shape = list(self.shape) or [1]
        rows = max(self.rows, 0)
        shape[rows] = -(-shape[rows] // shards)
        if self.cut >= 0 and self.cut != rows:
            shape[self.cut] = -(-shape[self.cut] // tensor)
        return tuple(shape)


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the forward pass of a global batch leaves to the backward pass.

    Fields:
      activations: arrays that depend on the batch. logits: those of them with a dim of ids. What
        depends on parameters or on nothing at all is made again by the compiler.
      used: for each leaf of the batch whether the step reads it; jit leaves out the others.
      flops: of matrix products and convolutions in the forward pass, 2 a multiply-add.
    """

    activations: tuple[Residual, ...]
    logits: tuple[Residual, ...]
    used: tuple[bool, ...]
    flops: float


def keep(program: Program, task: str, variant: str, batch: Batch, remat: str = "") -> Kept:
    """Traces the losses of a task's variant over a batch of shapes; `remat` = another policy."""
    experiment, parts = program.experiment, program
    model: Any = experiment.model
    if remat and remat != getattr(model, "remat_policy", remat):
        model = dataclasses.replace(model, remat_policy=remat)
        experiment = dataclasses.replace(experiment, model=model)
        parts = named_parts(experiment)[0]
    config = experiment.tasks[task]
    group_rows = config.shape(variant).group_rows
    extra = jax.eval_shape(
        lambda p: {k: e.init(p) for k, e in program.extras.items()}, parts.params
    )

    def forward(params, model_state, extra, batch):
        def losses(params):
            totals, *rest = step_lib.eval_step(
                parts, config.objective, params, model_state, extra, batch,
                group_rows=group_rows, dtype=program.dtype,
            )  # fmt: skip
            return totals, rest

        totals, pullback, rest = jax.vjp(losses, params, has_aux=True)
        return (totals, rest), pullback

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    arguments = (parts.params, parts.model_state, extra, shapes)
    with jax.sharding.use_abstract_mesh(program.mesh.abstract_mesh), step_lib.standard_promotion():
        closed, out = jax.make_jaxpr(forward, return_shape=True)(*arguments)
    jaxpr = closed.jaxpr
    first = len(jaxpr.invars) - len(jax.tree.leaves(shapes))
    residuals = _distinct(jaxpr.outvars[len(jax.tree.leaves(out[0])) :], jaxpr.invars)
    depends = _depends(jaxpr, [i >= first for i in range(len(jaxpr.invars))])
    live = _live(jaxpr)
    cut, ids = _dims(experiment, task)
    rows = {x.shape[0] for x in jax.tree.leaves(shapes)}
    found = [v for v in residuals if v in depends]
    is_logits = [bool(v.aval.shape) and v.aval.shape[-1] in ids for v in found]
    made = [_residual(v.aval, rows, cut) for v in found]
    activations = tuple(r for r, flag in zip(made, is_logits, strict=True) if not flag)
    logits = tuple(r for r, flag in zip(made, is_logits, strict=True) if flag)
    used = tuple(bool(extra) or v in live for v in jaxpr.invars[first:])
    return Kept(activations, logits, used, count_flops(jaxpr))


def _dims(experiment, task: str) -> tuple[set[int], set[int]]:
    """Sizes of dims that the tensor axis cuts, and of dims of ids."""
    model, vocabulary = experiment.model, experiment.vocabulary()
    cut: set[int] = set()
    if model.layer_plan():
        stack = model.stack(0)
        cut = {stack.num_heads, stack.kv_heads, stack.ffn_width} - {stack.width}
    config = experiment.tasks[task]
    ids = {vocabulary.spec(name).vocab_size for name in config.targets} - {0}
    chunk = getattr(config.objective, "vocab_chunk", 0)
    ids |= {chunk} | {size % chunk for size in ids if chunk}
    return cut - {1}, ids - {0}


def _residual(aval, rows: set[int], cut: set[int]) -> Residual:
    """Rows are cut over the batch axes: a dim of as many, or of a multiple such as tokens."""
    shape, itemsize = tuple(aval.shape), np.dtype(aval.dtype).itemsize
    exact = [d for d, n in enumerate(shape) if n in rows]
    multiple = [d for d, n in enumerate(shape) if n >= min(rows) and n % min(rows) == 0]
    first = (exact or multiple or [-1])[0]
    inner = [d for d, n in enumerate(shape) if n in cut and d > first]
    return Residual(shape, itemsize, first, (inner or [-1])[0])


def _distinct(outs, ins) -> list:
    """Variables that are no inputs, each once; keys of random numbers are left out."""
    given = set(ins)
    found: dict[Any, None] = {v: None for v in outs if isinstance(v, Var) and v not in given}
    return [v for v in found if isinstance(v.aval.dtype, np.dtype)]


def _inner(eqn) -> list:
    """Programs inside an equation."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found


def _depends(jaxpr, flags: list[bool]) -> set:
    """Variables that depend on inputs which are flagged."""
    found = {v for v, flag in zip(jaxpr.invars, flags, strict=True) if flag}
    for eqn in jaxpr.eqns:
        given = [isinstance(v, Var) and v in found for v in eqn.invars]
        if not any(given):
            continue
        inner = _inner(eqn)
        flags = [True] * len(eqn.outvars)
        if eqn.primitive.name == "scan":
            flags = _scan(eqn, inner[0], given)
        elif len(inner) == 1 and len(inner[0].invars) == len(given):
            flags = _outs(inner[0], given)
        found |= {v for v, flag in zip(eqn.outvars, flags, strict=True) if flag}
    return found


def _outs(jaxpr, given: list[bool]) -> list[bool]:
    inside = _depends(jaxpr, given)
    return [isinstance(v, Var) and v in inside for v in jaxpr.outvars]


def _scan(eqn, jaxpr, given: list[bool]) -> list[bool]:
    """Of a scan: what a turn makes of its carry is the carry of the next."""
    consts, carry = eqn.params["num_consts"], eqn.params["num_carry"]
    while True:
        outs = _outs(jaxpr, given)
        more = [a or b for a, b in zip(given[consts : consts + carry], outs[:carry], strict=True)]
        if more == given[consts : consts + carry]:
            return outs
        given = [*given[:consts], *more, *given[consts + carry :]]


def _live(jaxpr) -> set:
    """Inputs and variables that an output depends on."""
    live = {v for v in jaxpr.outvars if isinstance(v, Var)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or live & set(eqn.outvars):
            live |= {v for v in eqn.invars if isinstance(v, Var)}
    return live


def count_flops(jaxpr) -> float:
    """FLOPs of matrix products and convolutions, scans times their turns; kernels count nothing."""
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            (left, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[d] for d in left)
            total += 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out = eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / kernel[out]
        elif name.startswith("ragged_dot"):
            rows, width = eqn.invars[0].aval.shape[-2:]
            total += 2.0 * rows * width * eqn.outvars[0].aval.shape[-1]
        elif name not in ("pallas_call", "custom_jvp_call_jaxpr"):
            inner = [count_flops(j) for j in _inner(eqn)]
            turns = eqn.params.get("length", 1) if name == "scan" else 1
            total += turns * (max(inner) if name == "cond" and inner else sum(inner))
    return total
