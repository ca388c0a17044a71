"""Products and sums as XLA computes them best; RMS norm and SwiGLU with derivatives by hand.

What autodiff would keep for the backward pass of a scanned layer is written to memory once a layer
and read back; these keep their inputs and no more.
"""

from __future__ import annotations

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


def project(x: Array, w: Array, inputs: int = 1) -> Array:
    """x [..., *inputs] times w [*inputs, *outputs]: [..., *outputs].

    As a product with one matrix. On CPU, XLA would copy x, turned around, for the derivative of w;
    on TPU it would lay the heads of the output apart, which attention does not want.
    """
    lead, size = x.shape[: x.ndim - inputs], math.prod(w.shape[:inputs])
    rows = (-1,) if mesh.platform() == "cpu" else lead
    return jnp.matmul(x.reshape(*rows, size), w.reshape(size, -1)).reshape(*lead, *w.shape[inputs:])


@jax.custom_vjp
def rms_norm(x: Array, scale_D: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last dim, in float32 (Zhang & Sennrich 2019)."""
    return _rms_forward(x, scale_D, eps)[0]


def _rms_forward(x, scale_D, eps):
    y = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(row_sum(jnp.square(y)) / x.shape[-1] + eps)
    return (y * inverse * _last(scale_D, x.ndim)).astype(x.dtype), (x, inverse, scale_D)


def _rms_backward(residuals, d):
    x, inverse, scale_D = residuals
    d, normal = d.astype(jnp.float32), x.astype(jnp.float32) * inverse
    d_scale_D = jnp.sum(d * normal, axis=tuple(range(x.ndim - 1)))
    d_normal = d * _last(scale_D, x.ndim)
    d_x = inverse * (d_normal - normal * (row_sum(d_normal * normal) / x.shape[-1]))
    return d_x.astype(x.dtype), d_scale_D, None


rms_norm.defvjp(_rms_forward, _rms_backward)


def _last(vector_D: Array, ndim: int) -> Array:
    return vector_D.reshape((1,) * (ndim - 1) + (-1,))


@jax.custom_vjp
def swiglu(x_TD: Array, up_DF: Array, gate_DF: Array, down_FD: Array) -> Array:
    """(silu(x gate) * (x up)) down (Shazeer 2020)."""
    return swiglu_forward(x_TD, up_DF, gate_DF, down_FD)[0]


def swiglu_forward(x_TD, up_DF, gate_DF, down_FD):
    """Output, and the two products that `swiglu_backward` needs."""
    up_TF, gate_TF = jnp.matmul(x_TD, up_DF), jnp.matmul(x_TD, gate_DF)
    return jnp.matmul(jax.nn.silu(gate_TF) * up_TF, down_FD), up_TF, gate_TF


def swiglu_backward(x_TD, up_TF, gate_TF, up_DF, gate_DF, down_FD, d_TD):
    """Derivatives of x and, in float32, of the three matrices."""
    sigmoid_TF = jax.nn.sigmoid(gate_TF)
    silu_TF = gate_TF * sigmoid_TF
    d_TF = jnp.matmul(d_TD, down_FD.T)
    d_up_TF = d_TF * silu_TF
    d_gate_TF = d_TF * up_TF * (sigmoid_TF * (1 + gate_TF * (1 - sigmoid_TF)))
    d_x_TD = jnp.matmul(d_up_TF, up_DF.T) + jnp.matmul(d_gate_TF, gate_DF.T)

    def product(a, b):
        return jnp.matmul(a.T, b, preferred_element_type=jnp.float32)

    d_down_FD = product(silu_TF * up_TF, d_TD)
    return d_x_TD, product(x_TD, d_up_TF), product(x_TD, d_gate_TF), d_down_FD


def _swiglu_forward(x_TD, up_DF, gate_DF, down_FD):
    out_TD, *kept = swiglu_forward(x_TD, up_DF, gate_DF, down_FD)
    return out_TD, (x_TD, *kept, up_DF, gate_DF, down_FD)


def _swiglu_backward(residuals, d_TD):
    x_TD, up_TF, gate_TF, up_DF, gate_DF, down_FD = residuals
    d_x_TD, *grads = swiglu_backward(x_TD, up_TF, gate_TF, up_DF, gate_DF, down_FD, d_TD)
    return d_x_TD, *(g.astype(d_x_TD.dtype) for g in grads)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
