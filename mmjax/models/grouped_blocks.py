"""SwiGLU of rows in blocks of one expert each, for CPU: a loop over experts, in it one over blocks.

What is added up over the blocks of an expert stays in the cache that way. Loops end with the blocks
that hold rows; an accelerator would ask its host after each turn.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mmjax.models import fused
from mmjax.typing import Array


@jax.custom_vjp
def ffn(x_NbD: Array, weight_Nb: Array, end_E: Array, up_EDF, gate_EDF, down_EFD) -> Array:
    """weight * SwiGLU of each row, zero in blocks that hold none; the blocks of an expert end
    before `end_E`, where those of the next begin."""
    return _forward(x_NbD, weight_Nb, end_E, up_EDF, gate_EDF, down_EFD)[0]


def _forward(x_NbD, weight_Nb, end_E, *matrices):
    cast = [w.astype(x_NbD.dtype) for w in matrices]

    def expert(e, made):
        up_DF, gate_DF, down_FD = (_at(w, e) for w in cast)

        def block(n, made):
            x_bD, weight_b1 = _at(x_NbD, n), _at(weight_Nb, n)[:, None].astype(x_NbD.dtype)
            up_bF, gate_bF = jnp.matmul(x_bD, up_DF), jnp.matmul(x_bD, gate_DF)
            y_bD = jnp.matmul(jax.nn.silu(gate_bF) * up_bF * weight_b1, down_FD)
            return [
                _put(old, new, n) for old, new in zip(made, (y_bD, up_bF, gate_bF), strict=True)
            ]

        return jax.lax.fori_loop(_start(end_E, e), end_E[e], block, made)

    inner_NbF = jnp.zeros((*x_NbD.shape[:2], cast[0].shape[2]), x_NbD.dtype)
    made = [jnp.zeros_like(x_NbD), inner_NbF, inner_NbF]
    y_NbD, up_NbF, gate_NbF = jax.lax.fori_loop(0, len(end_E), expert, made)
    return y_NbD, (x_NbD, weight_Nb, end_E, up_NbF, gate_NbF, *matrices)


def _backward(residuals, d_NbD):
    x_NbD, weight_Nb, end_E, up_NbF, gate_NbF, *matrices = residuals
    cast = [w.astype(x_NbD.dtype) for w in matrices]
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def expert(e, made):
        up_FD, gate_FD, down_DF = (_at(w, e).T for w in cast)

        def block(n, made):
            d_x_NbD, d_weight_Nb, d_up_DF, d_gate_DF, d_down_FD = made
            x_bD, up_bF, gate_bF, d_bD = (_at(x, n) for x in (x_NbD, up_NbF, gate_NbF, d_NbD))
            weight_b1 = _at(weight_Nb, n)[:, None].astype(x_bD.dtype)
            d_bF = jnp.matmul(d_bD, down_DF)
            inner_bF, d_up_bF, d_gate_bF = fused.gated_backward(up_bF, gate_bF, d_bF * weight_b1)
            d_weight_b = fused.row_sum((d_bF * inner_bF).astype(jnp.float32))[:, 0]
            d_x_bD = jnp.matmul(d_up_bF, up_FD) + jnp.matmul(d_gate_bF, gate_FD)
            return (
                _put(d_x_NbD, d_x_bD, n),
                _put(d_weight_Nb, d_weight_b.astype(weight_Nb.dtype), n),
                d_up_DF + product(x_bD.T, d_up_bF),
                d_gate_DF + product(x_bD.T, d_gate_bF),
                d_down_FD + product((inner_bF * weight_b1).T, d_bD),
            )

        d_x_NbD, d_weight_Nb, *grads = made
        zeros = [jnp.zeros(g.shape[1:], jnp.float32) for g in grads]
        made = (d_x_NbD, d_weight_Nb, *zeros)
        *rows, d_up, d_gate, d_down = jax.lax.fori_loop(_start(end_E, e), end_E[e], block, made)
        new = zip(grads, (d_up, d_gate, d_down), strict=True)
        return (*rows, *(_put(g, d.astype(g.dtype), e) for g, d in new))

    made = tuple(jnp.zeros_like(x) for x in (x_NbD, weight_Nb, *matrices))
    d_x_NbD, d_weight_Nb, *grads = jax.lax.fori_loop(0, len(end_E), expert, made)
    return d_x_NbD, d_weight_Nb, None, *grads


ffn.defvjp(_forward, _backward)


def _start(end_E: Array, e) -> Array:
    return jnp.where(e > 0, end_E[jnp.maximum(e - 1, 0)], 0)


def _at(x: Array, i) -> Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


_put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
