"""Products and sums as XLA computes them best; norms and SwiGLU with derivatives by hand.

What autodiff would keep for the backward pass of a scanned layer is written to memory once a layer
and read back; these keep their inputs and no more.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from mmjax.parallel import mesh
from mmjax.typing import Array


def row_sum(x: Array) -> Array:
    """Sum over the last dim, kept; as a product on CPU, where sums of rows do not use vectors."""
    if mesh.platform() != "cpu":
        return jnp.sum(x, axis=-1, keepdims=True)
    return jnp.matmul(x, jnp.ones((x.shape[-1], 1), x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, w: Array, inputs: int = 1) -> Array:
    """x [..., *inputs] times w [*inputs, *outputs] in the dtype of x: [..., *outputs].

    The derivative of w has its dtype, from the product on: it may be added up over devices in more
    digits than x has. As a product with one matrix: on TPU XLA would lay the heads of the output
    apart, which attention does not want, and on CPU copy x, turned around.
    """
    x_TI, w_IO = _as_matrices(x, w, inputs)
    out_TO = jnp.matmul(x_TI, w_IO.astype(x.dtype))
    return out_TO.reshape(*x.shape[: x.ndim - inputs], *w.shape[inputs:])


def _as_matrices(x: Array, w: Array, inputs: int) -> tuple[Array, Array]:
    """Both with their inputs as one dim; on CPU x has one dim before it, elsewhere those it has,
    as they may lie on several devices."""
    lead, size = x.shape[: x.ndim - inputs], math.prod(w.shape[:inputs])
    rows = (math.prod(lead),) if mesh.platform() == "cpu" else lead
    return x.reshape(*rows, size), w.reshape(size, -1)


def _project_forward(x, w, inputs):
    return project(x, w, inputs), (x, w)


def _project_backward(inputs, residuals, d):
    x, w = residuals
    x_TI, w_IO = _as_matrices(x, w, inputs)
    d_TO = d.reshape(*x_TI.shape[:-1], -1)
    d_x = jnp.matmul(d_TO, w_IO.astype(x.dtype).T).reshape(x.shape)
    over = tuple(range(x_TI.ndim - 1))
    d_w = jax.lax.dot_general(
        x_TI, d_TO, ((over, over), ((), ())), preferred_element_type=w.dtype
    )  # fmt: skip
    return d_x, d_w.reshape(w.shape)


project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def rows(table_VD: Array, index: Array) -> Array:
    """Rows of a table [..., D]; gradients are added up in float32 for any dtype."""
    return table_VD[index]


def _rows_forward(table_VD, index):
    return table_VD[index], (index, table_VD)


def _rows_backward(residuals, d):
    index, table_VD = residuals
    zeros = jnp.zeros(table_VD.shape, jnp.float32)
    return zeros.at[index].add(d.astype(jnp.float32)).astype(table_VD.dtype), None


rows.defvjp(_rows_forward, _rows_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def norm(x: Array, scale_D: Array, eps: float, centred: bool = False) -> Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last dim, in float32 (RMS norm, Zhang & Sennrich
    2019); `centred` subtracts the mean first (layer norm)."""
    return _norm_forward(x, scale_D, eps, centred)[0]


def _centre(x: Array, centred: bool) -> Array:
    y = x.astype(jnp.float32)
    return y - jnp.mean(y, axis=-1, keepdims=True) if centred else y


def _norm_forward(x, scale_D, eps, centred):
    y = _centre(x, centred)
    inverse = jax.lax.rsqrt(row_sum(jnp.square(y)) / x.shape[-1] + eps)
    return (y * inverse * _last(scale_D, x.ndim)).astype(x.dtype), (x, inverse, scale_D)


def _norm_backward(eps, centred, residuals, d):
    x, inverse, scale_D = residuals
    d, normal = d.astype(jnp.float32), _centre(x, centred) * inverse
    d_scale_D = jnp.sum(d * normal, axis=tuple(range(x.ndim - 1)))
    d_normal = d * _last(scale_D, x.ndim)
    d_x = inverse * (d_normal - normal * (row_sum(d_normal * normal) / x.shape[-1]))
    return _centre(d_x, centred).astype(x.dtype), d_scale_D


norm.defvjp(_norm_forward, _norm_backward)


def _last(vector_D: Array, ndim: int) -> Array:
    return vector_D.reshape((1,) * (ndim - 1) + (-1,))


@jax.custom_vjp
def swiglu(x_TD: Array, up_DF: Array, gate_DF: Array, down_FD: Array) -> Array:
    """(silu(x gate) * (x up)) down in the dtype of x (Shazeer 2020)."""
    return _swiglu_forward(x_TD, up_DF, gate_DF, down_FD)[0]


def swiglu_forward(x_TD, up_DF, gate_DF, down_FD):
    """Output, and the two products that `swiglu_backward` needs."""
    up_TF, gate_TF = jnp.matmul(x_TD, up_DF), jnp.matmul(x_TD, gate_DF)
    return jnp.matmul(jax.nn.silu(gate_TF) * up_TF, down_FD), up_TF, gate_TF


def gated_backward(up: Array, gate: Array, d: Array) -> tuple[Array, Array, Array]:
    """silu(gate) * up, and for a derivative d of that those of up and gate."""
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    return silu * up, d * silu, d * up * (sigmoid * (1 + gate * (1 - sigmoid)))


def swiglu_backward(x_TD, up_TF, gate_TF, up_DF, gate_DF, down_FD, d_TD, dtype=jnp.float32):
    """Derivatives of x and of the three matrices, `dtype` from their products on."""
    inner_TF, d_up_TF, d_gate_TF = gated_backward(up_TF, gate_TF, jnp.matmul(d_TD, down_FD.T))
    d_x_TD = jnp.matmul(d_up_TF, up_DF.T) + jnp.matmul(d_gate_TF, gate_DF.T)

    def product(a, b):
        return jnp.matmul(a.T, b, preferred_element_type=dtype)

    d_down_FD = product(inner_TF, d_TD)
    return d_x_TD, product(x_TD, d_up_TF), product(x_TD, d_gate_TF), d_down_FD


def _swiglu_forward(x_TD, up_DF, gate_DF, down_FD):
    cast = (w.astype(x_TD.dtype) for w in (up_DF, gate_DF, down_FD))
    out_TD, *kept = swiglu_forward(x_TD, *cast)
    return out_TD, (x_TD, *kept, up_DF, gate_DF, down_FD)


def _swiglu_backward(residuals, d_TD):
    x_TD, up_TF, gate_TF, *matrices = residuals
    up_DF, gate_DF, down_FD = (w.astype(x_TD.dtype) for w in matrices)
    dtype = matrices[0].dtype
    return swiglu_backward(x_TD, up_TF, gate_TF, up_DF, gate_DF, down_FD, d_TD, dtype=dtype)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
