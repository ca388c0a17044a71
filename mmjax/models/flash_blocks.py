"""Attention kernels of long rows: blocks of queries and keys, with an online softmax
(Milakov & Gimelshein 2018; Dao et al. 2022).

Pairs of blocks that cannot see one another are neither read nor computed: the grid is told by
numbers that are known before the kernel begins.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.models.chunked import FLOOR, TINY
from mmjax.models.flash_kernels import (
    Plan,
    call,
    dot,
    heads,
    like,
    scores,
    seen,
    seen_by,
)
from mmjax.typing import Array


def _sees(plan: Plan, q_marks, k_marks) -> Array:
    """Bool [B, blocks of queries, blocks of keys]: some pair may see one another."""
    big = jnp.iinfo(jnp.int32).max

    def bounds(marks, block, real):
        marks, real = (x.reshape(*x.shape[:2], -1, block) for x in (marks, real))
        low = jnp.min(marks, -1, where=real, initial=big)
        return low, jnp.max(marks, -1, where=real, initial=-big)

    q_low, q_high = bounds(q_marks, plan.block_q, q_marks[:, :1] >= 0)  # [B, N, blocks]
    k_low, k_high = bounds(k_marks, plan.block_k, k_marks[:, :1] > 0)
    out = (q_low[:, 0, :, None] <= k_high[:, 0, None]) & (
        k_low[:, 0, None] <= q_high[:, 0, :, None]
    )
    if q_marks.shape[1] > 1:
        out &= k_low[:, 1, None] <= q_high[:, 1, :, None]
    return out


def _visits(sees) -> Array:
    """Int32 [...]: the number of the inner block if it is seen, else -1 - that of the last one
    that was, which is then still at hand."""
    number = jnp.arange(sees.shape[-1], dtype=jnp.int32)
    last = jax.lax.cummax(jnp.where(sees, number, 0), axis=2)
    return jnp.where(sees, number, -1 - last).reshape(-1)


class _Grid:
    """Grid (row, heads, outer block, inner block), with the numbers of `_visits` before it."""

    def __init__(self, plan: Plan, q, k, outer_is_query: bool):
        self.plan, self.outer_is_query = plan, outer_is_query
        self.groups = k.shape[2] // (plan.heads * plan.width)
        self.blocks_q, self.blocks_k = q.shape[1] // plan.block_q, k.shape[1] // plan.block_k
        outer, self.inner = self.blocks_q, self.blocks_k
        if not outer_is_query:
            outer, self.inner = self.inner, outer
        self.grid, self.outer = (q.shape[0], self.groups, outer, self.inner), outer

    def _at(self, is_query: bool, b, o, i, visits):
        if is_query == self.outer_is_query:
            return o
        number = visits[(b * self.outer + o) * self.inner + i]
        return jnp.where(number < 0, -1 - number, number)

    def tokens(self, is_query: bool):
        """Spec of queries or keys, [B, L, lanes]."""
        plan = self.plan
        shape = (1, plan.block_q, plan.heads * plan.ratio * plan.width)
        if not is_query:
            shape = (1, plan.block_k, plan.heads * plan.width)
        return pl.BlockSpec(
            shape, lambda b, h, o, i, visits: (b, self._at(is_query, b, o, i, visits), h)
        )

    def marks(self, is_query: bool, num: int):
        """Spec of marks [B, N, L]."""
        block = self.plan.block_q if is_query else self.plan.block_k
        return pl.BlockSpec(
            (1, num, block),
            lambda b, h, o, i, visits: (b, 0, self._at(is_query, b, o, i, visits)),
        )

    def of_queries(self):
        """Spec of a number for each head and query, [B, groups, heads of a group, Q]."""
        plan = self.plan
        return pl.BlockSpec(
            (1, 1, plan.heads * plan.ratio, plan.block_q),
            lambda b, h, o, i, visits: (b, h, 0, self._at(True, b, o, i, visits)),
        )

    def call(
        self, name, kernel, products, visits, operands, in_specs, out_specs, out_shape, scratch
    ):
        """The kernel called over the grid."""
        spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=self.grid, in_specs=in_specs, out_specs=out_specs,
            scratch_shapes=scratch,
        )  # fmt: skip
        semantics = ("parallel", "parallel", "parallel", "arbitrary")
        return call(
            self.plan, name, kernel, products, (visits, *operands), semantics,
            grid_spec=spec, out_shape=out_shape,
        )  # fmt: skip


def _is_seen(visits):
    """Whether the inner block of this program is seen."""
    at = (pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)) * pl.num_programs(3)
    return visits[at + pl.program_id(3)] >= 0


def _is_last():
    return pl.program_id(3) == pl.num_programs(3) - 1


def _clear(*scratch):
    @pl.when(pl.program_id(3) == 0)
    def _():
        for x in scratch:
            x[...] = jnp.zeros_like(x)


def forward(plan: Plan, q, k, v, q_marks, k_marks):
    """Output, and the logarithm of the sum of weights [B, groups, heads of a group, Q]."""
    grid, num = _Grid(plan, q, k, outer_is_query=True), q_marks.shape[1]
    kv, of_queries, tokens = grid.tokens(False), grid.of_queries(), grid.tokens(True)
    own = plan.heads * plan.ratio
    lse = jax.ShapeDtypeStruct((q.shape[0], grid.groups, own, q.shape[1]), jnp.float32)
    return grid.call(
        "forward", _forward_kernel, 2, _visits(_sees(plan, q_marks, k_marks)),
        (q_marks, k_marks, q, k, v),
        [grid.marks(True, num), grid.marks(False, num), tokens, kv, kv],
        [tokens, of_queries], [*like(q), lse],
        [
            pltpu.VMEM((plan.block_q, own * plan.width), jnp.float32),
            pltpu.VMEM((own, plan.block_q, 1), jnp.float32),
            pltpu.VMEM((own, plan.block_q, 1), jnp.float32),
        ],
    )  # fmt: skip


def _forward_kernel(visits, q_marks, k_marks, q, k, v, out, lse, sums, top, total, *, plan: Plan):
    _clear(sums, total)

    @pl.when(pl.program_id(3) == 0)
    def _():
        top[...] = jnp.full_like(top, FLOOR)

    @pl.when(_is_seen(visits))
    def _():
        mask = seen(q_marks[0], k_marks[0])
        for head, own, keys in heads(plan):
            value = v[0, :, keys]
            score = scores(q[0, :, own], k[0, :, keys], mask, plan.width)
            before = top[head]
            above = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
            weight, kept = jnp.exp(score - above), jnp.exp(before - above)
            top[head] = above
            total[head] = total[head] * kept + jnp.sum(weight, axis=1, keepdims=True)
            sums[:, own] = sums[:, own] * kept + dot(weight.astype(value.dtype), value, 1, 0)

    @pl.when(_is_last())
    def _():
        for head, own, _ in heads(plan):
            whole = jnp.maximum(total[head], TINY)
            out[0, :, own] = (sums[:, own] / whole).astype(out.dtype)
            lse[0, 0, head : head + 1, :] = (top[head] + jnp.log(whole)).T


def backward(plan: Plan, d_out, q, k, v, q_marks, k_marks, out, lse):
    """Derivatives of queries, keys and values."""
    product = d_out.astype(jnp.float32) * out.astype(jnp.float32)
    product = product.reshape(*product.shape[:2], *lse.shape[1:3], plan.width)
    mean = jnp.moveaxis(jnp.sum(product, axis=-1), 1, 3)
    num, sees = q_marks.shape[1], _sees(plan, q_marks, k_marks)
    operands = (q_marks, k_marks, q, k, v, d_out, lse, mean)

    def run(name, kernel, products, outer_is_query, visits, like_what):
        grid = _Grid(plan, q, k, outer_is_query)
        tokens, kv, of_queries = grid.tokens(True), grid.tokens(False), grid.of_queries()
        in_specs = [
            grid.marks(True, num), grid.marks(False, num), tokens, kv, kv, tokens,
            of_queries, of_queries,
        ]  # fmt: skip
        out_spec = grid.tokens(outer_is_query)
        lanes = plan.heads * plan.width * (plan.ratio if outer_is_query else 1)
        shape = (plan.block_q if outer_is_query else plan.block_k, lanes)
        scratch = [pltpu.VMEM(shape, jnp.float32) for _ in like_what]
        return grid.call(
            name, kernel, products, visits, operands, in_specs,
            [out_spec] * len(like_what), like(*like_what), scratch,
        )  # fmt: skip

    (d_q,) = run("backward_q", _d_q_kernel, 3, True, _visits(sees), [q])
    turned = _visits(jnp.swapaxes(sees, 1, 2))
    d_k, d_v = run("backward_kv", _d_kv_kernel, 4, False, turned, [k, v])
    return d_q, d_k, d_v


def _derivatives(plan: Plan, head: int, mask, query, key, value, d, lse, mean):
    """Weights and derivatives of scores, [keys, queries]."""
    weight = jnp.exp(scores(key, query, mask, plan.width) - lse[0, 0, head : head + 1, :])
    d_weight = dot(value, d, 1, 1)
    d_score = weight * (d_weight - mean[0, 0, head : head + 1, :]) * plan.width**-0.5
    return weight.astype(d.dtype), d_score.astype(query.dtype)


def _d_q_kernel(visits, q_marks, k_marks, q, k, v, d_out, lse, mean, d_q, sums, *, plan: Plan):
    _clear(sums)

    @pl.when(_is_seen(visits))
    def _():
        mask = seen_by(q_marks[0], k_marks[0])
        for head, own, keys in heads(plan):
            key = k[0, :, keys]
            _, d_score = _derivatives(
                plan, head, mask, q[0, :, own], key, v[0, :, keys], d_out[0, :, own], lse, mean
            )
            sums[:, own] += dot(d_score, key, 0, 0)

    @pl.when(_is_last())
    def _():
        d_q[0] = sums[...].astype(d_q.dtype)


def _d_kv_kernel(
    visits, q_marks, k_marks, q, k, v, d_out, lse, mean, d_k, d_v, sums_k, sums_v, *, plan: Plan
):
    _clear(sums_k, sums_v)

    @pl.when(_is_seen(visits))
    def _():
        mask = seen_by(q_marks[0], k_marks[0])
        for head, own, keys in heads(plan):
            query, d = q[0, :, own], d_out[0, :, own]
            weight, d_score = _derivatives(
                plan, head, mask, query, k[0, :, keys], v[0, :, keys], d, lse, mean
            )
            sums_k[:, keys] += dot(d_score, query, 1, 0)
            sums_v[:, keys] += dot(weight, d, 1, 0)

    @pl.when(_is_last())
    def _():
        d_k[0] = sums_k[...].astype(d_k.dtype)
        d_v[0] = sums_v[...].astype(d_v.dtype)
