"""Expert feed-forwards: dropless dispatch of sorted tokens, and the other two forms.

`jax.lax.ragged_dot` is a grouped kernel on TPU, and a dense product over all experts on CPU and, in
current releases, on GPUs; there sorted tokens in blocks of one expert each have static shapes, drop
nothing and cost what is used. The two permutations have hand-written derivatives, so neither
direction scatters.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.models.routers import Routing
from mmjax.parallel import mesh as mesh_lib
from mmjax.typing import Array

UNROLL = 4  # blocks in one turn of a loop, whose products then share the cores (history.md)


def expert_ffn(
    x_WTD: Array, routing: Routing, up_EDF: Array, gate_EDF: Array, down_EFD: Array,
    implementation: str = "auto", block_rows: int = 128,
) -> Array:  # fmt: skip
    """Weighted sum of the chosen experts of every token, [W, T, D].

    Args:
      implementation, block_rows: of experts that tokens choose, as in `MoE`.
    """
    if routing.dispatch_WTEC is not None:
        dispatch = routing.dispatch_WTEC.astype(x_WTD.dtype)
        combine = routing.combine_WTEC.astype(x_WTD.dtype)
        slots = jnp.einsum("WTD,WTEC->WECD", x_WTD, dispatch)
        out = _dense_experts(slots, up_EDF, gate_EDF, down_EFD)
        return jnp.einsum("WECD,WTEC->WTD", out, combine)
    if routing.token_WEC is not None:
        return _expert_choice(x_WTD, routing, up_EDF, gate_EDF, down_EFD)
    if implementation == "auto":
        implementation = "ragged" if mesh_lib.platform() == "tpu" else "blocks"
    experts = functools.partial(
        _sorted_experts, implementation=implementation, block_rows=block_rows
    )
    return _token_choice(x_WTD, routing, up_EDF, gate_EDF, down_EFD, experts)


def load_by_stream(routing: Routing, stream_WT: Array, num_streams: int, num_experts: int) -> Array:
    """Tokens by stream number (row 0 = padding) and expert, [M + 1, E] float32."""
    if routing.dispatch_WTEC is not None:
        used = jnp.sum(routing.combine_WTEC, axis=-1)
        stream = jax.nn.one_hot(stream_WT, num_streams + 1, dtype=used.dtype)
        return jnp.einsum("WTE,WTM->ME", used, stream)
    if routing.token_WEC is not None:
        weight, num = routing.weight_WEC, routing.token_WEC.shape[0]
        flat = routing.token_WEC.reshape(num, -1)
        stream = jnp.take_along_axis(stream_WT, flat, axis=1).reshape(weight.shape)
        expert = jnp.broadcast_to(jnp.arange(num_experts)[None, :, None], weight.shape)
    else:
        weight, expert = routing.weight_WTX, routing.expert_WTX
        stream = jnp.broadcast_to(stream_WT[:, :, None], weight.shape)
    cell = (stream * num_experts + expert).reshape(-1)
    cells = jax.nn.one_hot(cell, (num_streams + 1) * num_experts, dtype=jnp.float32)
    used = (weight.reshape(-1) > 0).astype(jnp.float32)
    return jnp.einsum("N,NC->C", used, cells).reshape(num_streams + 1, num_experts)


def _dense_experts(x_WECD, up_EDF, gate_EDF, down_EFD):
    up = jnp.einsum("WECD,EDF->WECF", x_WECD, up_EDF)
    gate = jnp.einsum("WECD,EDF->WECF", x_WECD, gate_EDF)
    return jnp.einsum("WECF,EFD->WECD", jax.nn.silu(gate) * up, down_EFD)


def _expert_choice(x_WTD, routing, up_EDF, gate_EDF, down_EFD):
    groups, num_experts, capacity = routing.token_WEC.shape
    flat = routing.token_WEC.reshape(groups, -1)
    x_WECD = jnp.take_along_axis(x_WTD, flat[:, :, None], axis=1)
    x_WECD = x_WECD.reshape(groups, num_experts, capacity, -1)
    out = _dense_experts(x_WECD, up_EDF, gate_EDF, down_EFD)
    out = out * routing.weight_WEC[..., None].astype(out.dtype)
    rows = jnp.arange(groups)[:, None]
    return jnp.zeros_like(x_WTD).at[rows, flat].add(out.reshape(groups, -1, out.shape[-1]))


def _token_choice(x_WTD, routing, up_EDF, gate_EDF, down_EFD, experts):
    """Every batch shard sorts its own tokens; experts are gathered to it, tensor parts summed."""
    mesh = jax.sharding.get_abstract_mesh()
    weight_WTX = routing.weight_WTX.astype(x_WTD.dtype)
    if mesh.empty or math.prod(mesh.axis_sizes) == 1:
        return experts(x_WTD, routing.expert_WTX, weight_WTX, up_EDF, gate_EDF, down_EFD)

    def local(*args):
        return jax.lax.psum(experts(*args), "tensor")

    batch, wide = PartitionSpec(mesh_lib.BATCH_AXES), PartitionSpec(None, None, "tensor")
    return jax.shard_map(
        local,
        in_specs=(batch, batch, batch, wide, wide, PartitionSpec(None, "tensor", None)),
        out_specs=batch,
        check_vma=False,
    )(x_WTD, routing.expert_WTX, weight_WTX, up_EDF, gate_EDF, down_EFD)


def _sorted_experts(
    x_WTD, expert_WTX, weight_WTX, up_EDF, gate_EDF, down_EFD, implementation, block_rows
):
    num_experts, choices = up_EDF.shape[0], expert_WTX.shape[-1]
    x_TD = x_WTD.reshape(-1, x_WTD.shape[-1])
    weight_TX = weight_WTX.reshape(-1, choices)
    expert_TX = jnp.where(weight_TX > 0, expert_WTX.reshape(-1, choices), num_experts)
    rows = 1 if implementation == "ragged" else block_rows  # blocks of one row sort unpadded
    slot_TX, token_S, expert_N, used = block_plan(expert_TX, num_experts, rows)
    x_SD = _gather_tokens(x_TD, slot_TX, token_S)
    if implementation == "ragged":
        y_SD = _ragged_ffn(x_SD, expert_TX, used, up_EDF, gate_EDF, down_EFD)
    else:
        x_NbD = x_SD.reshape(len(expert_N), -1, x_SD.shape[-1])
        y_NbD = _block_ffn(x_NbD, expert_N, used, up_EDF, gate_EDF, down_EFD)
        y_SD = y_NbD.reshape(x_SD.shape)
    return _combine(y_SD, weight_TX, slot_TX, token_S).reshape(x_WTD.shape)


def _ragged_ffn(x_SD, expert_TX, used, up_EDF, gate_EDF, down_EFD):
    """Experts of the first `used` rows, which are sorted by expert; zero in the others."""
    num_experts = len(up_EDF)
    count_E = jnp.sum(expert_TX.reshape(-1, 1) == jnp.arange(num_experts)[None], axis=0)
    product = functools.partial(jax.lax.ragged_dot, group_sizes=count_E)
    # Kernels may leave anything behind the last group.
    is_used_S1 = (jnp.arange(len(x_SD)) < used)[:, None]
    inner_SF = jax.nn.silu(product(x_SD, gate_EDF)) * product(x_SD, up_EDF)
    return jnp.where(is_used_S1, product(jnp.where(is_used_S1, inner_SF, 0), down_EFD), 0)


def block_plan(
    expert_TX: Array, num_experts: int, block_rows: int
) -> tuple[Array, Array, Array, Array]:
    """Where each choice goes when tokens are sorted by expert into padded blocks.

    `expert_TX` equal to `num_experts` = not used. Returns slot_TX (num_slots = not used), token_S
    (num_tokens = padding), the expert of each block, expert_N, and how many of the blocks hold
    tokens, the first ones; N = floor(T X / rows) + E, rounded up to a multiple of UNROLL.
    """
    num_tokens, choices = expert_TX.shape
    num_choices = num_tokens * choices
    block_rows = min(block_rows, -(-num_choices // 8) * 8)
    num_blocks = -(-(num_choices // block_rows + num_experts) // UNROLL) * UNROLL
    num_slots = num_blocks * block_rows
    flat = expert_TX.reshape(-1)
    one_hot = (flat[:, None] == jnp.arange(num_experts)[None, :]).astype(jnp.int32)
    rank = jnp.cumsum(one_hot, axis=0) - one_hot
    count_E = jnp.sum(one_hot, axis=0)
    blocks_E = -(-count_E // block_rows)
    end_E = jnp.cumsum(blocks_E)
    start_E = (end_E - blocks_E) * block_rows
    slot = jnp.sum(one_hot * (rank + start_E[None, :]), axis=1)
    slot = jnp.where(flat < num_experts, slot, num_slots)
    token_S = jnp.full((num_slots + 1,), num_tokens, jnp.int32)
    token_S = token_S.at[slot].set(jnp.arange(num_choices, dtype=jnp.int32) // choices)
    token_S = token_S[:num_slots]
    expert_N = jnp.sum(jnp.arange(num_blocks)[:, None] >= end_E[None, :], axis=1)
    return (
        slot.reshape(expert_TX.shape).astype(jnp.int32),
        token_S,
        jnp.minimum(expert_N, num_experts - 1).astype(jnp.int32),
        end_E[-1].astype(jnp.int32),
    )


def _take(x, index):
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def _gather_tokens(x_TD, slot_TX, token_S):
    del slot_TX
    return _take(x_TD, token_S)


def _gather_forward(x_TD, slot_TX, token_S):
    return _take(x_TD, token_S), slot_TX


def _gather_backward(slot_TX, d_SD):
    choices = slot_TX.shape[1]
    return sum(_take(d_SD, slot_TX[:, i]) for i in range(choices)), None, None


_gather_tokens.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def _combine(y_SD, weight_TX, slot_TX, token_S):
    del token_S
    choices = weight_TX.shape[1]
    return sum(_take(y_SD, slot_TX[:, i]) * weight_TX[:, i, None] for i in range(choices))


def _combine_forward(y_SD, weight_TX, slot_TX, token_S):
    return _combine(y_SD, weight_TX, slot_TX, token_S), (y_SD, weight_TX, slot_TX, token_S)


def _combine_backward(residuals, d_TD):
    y_SD, weight_TX, slot_TX, token_S = residuals
    choices = weight_TX.shape[1]
    d_weight = jnp.stack(
        [jnp.sum(_take(y_SD, slot_TX[:, i]) * d_TD, axis=-1) for i in range(choices)], axis=1
    )
    weight_S = jnp.zeros((y_SD.shape[0] + 1,), weight_TX.dtype)
    weight_S = weight_S.at[slot_TX.reshape(-1)].set(weight_TX.reshape(-1))[:-1]
    return _take(d_TD, token_S) * weight_S[:, None], d_weight, None, None


_combine.defvjp(_combine_forward, _combine_backward)


@jax.custom_vjp
def _block_ffn(x_NbD, expert_N, used, up_EDF, gate_EDF, down_EFD):
    """Experts of the first `used` blocks; zero in the others, which hold no tokens."""
    return _block_forward(x_NbD, expert_N, used, up_EDF, gate_EDF, down_EFD)[0]


def _block_forward(x_NbD, expert_N, used, up_EDF, gate_EDF, down_EFD):
    def body(n, made):
        x_bD, e = _at(x_NbD, n), _at(expert_N, n)
        up = jnp.matmul(x_bD, _at(up_EDF, e))
        gate = jnp.matmul(x_bD, _at(gate_EDF, e))
        y_bD = jnp.matmul(jax.nn.silu(gate) * up, _at(down_EFD, e))
        return jax.tree.map(lambda old, new: _put(old, new, n), made, (y_bD, up, gate))

    inner = jnp.zeros((*x_NbD.shape[:2], up_EDF.shape[2]), x_NbD.dtype)
    y_NbD, up_NbF, gate_NbF = _for_used(used, body, (jnp.zeros_like(x_NbD), inner, inner))
    return y_NbD, (x_NbD, expert_N, used, up_NbF, gate_NbF, up_EDF, gate_EDF, down_EFD)


def _block_backward(residuals, d_NbD):
    x_NbD, expert_N, used, up_NbF, gate_NbF, up_EDF, gate_EDF, down_EFD = residuals
    grad_dtype = functools.partial(jnp.zeros_like, dtype=jnp.float32)

    def body(n, carry):
        d_x_NbD, d_up_EDF, d_gate_EDF, d_down_EFD = carry
        x_bD, e, up, gate, d_bD = (_at(x, n) for x in (x_NbD, expert_N, up_NbF, gate_NbF, d_NbD))
        sigmoid = jax.nn.sigmoid(gate)
        silu = gate * sigmoid
        d_h = jnp.matmul(d_bD, _at(down_EFD, e).T)
        d_up = d_h * silu
        d_gate = d_h * up * (sigmoid * (1 + gate * (1 - sigmoid)))
        d_x = jnp.matmul(d_up, _at(up_EDF, e).T) + jnp.matmul(d_gate, _at(gate_EDF, e).T)

        def more(total_EDF, a, b):
            product = jnp.matmul(a.T, b, preferred_element_type=jnp.float32)
            return _put(total_EDF, _at(total_EDF, e) + product, e)

        return (
            _put(d_x_NbD, d_x, n),
            more(d_up_EDF, x_bD, d_up),
            more(d_gate_EDF, x_bD, d_gate),
            more(d_down_EFD, silu * up, d_bD),
        )

    zeros = (grad_dtype(up_EDF), grad_dtype(gate_EDF), grad_dtype(down_EFD))
    d_x_NbD, *grads = _for_used(used, body, (jnp.zeros_like(x_NbD), *zeros))
    d_up, d_gate, d_down = (g.astype(up_EDF.dtype) for g in grads)
    return d_x_NbD, None, None, d_up, d_gate, d_down


def _for_used(used, body, carry):
    """A loop over the blocks that are used, UNROLL in a turn: there are a multiple of so many.

    On CPU alone it ends with them: an accelerator would ask the host after each turn.
    """

    def turn(i, carry):
        for j in range(UNROLL):
            carry = body(i * UNROLL + j, carry)
        return carry

    count = used if mesh_lib.platform() == "cpu" else len(carry[0])
    return jax.lax.fori_loop(0, -(-count // UNROLL), turn, carry)


def _at(x, i):
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x, new, i):
    return jax.lax.dynamic_update_index_in_dim(x, new, i, 0)


_block_ffn.defvjp(_block_forward, _block_backward)
