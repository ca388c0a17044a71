"""Experts over devices: tokens travel to the experts that they chose, experts stay where they lie.

With an `expert` axis in the mesh a device holds E / n experts whole along the other axes of the
batch. Each device sorts its choices by expert and exchanges equal rooms with the others of its
axis (Lepikhin et al. 2020, GShard, arXiv 2006.16668); what finds its room full is dropped and
counted. On one device, and where `expert` is 1, nothing is dropped.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax import console
from mmjax.models import dispatch, grouped
from mmjax.models.plan import MoE
from mmjax.models.routers import Routing
from mmjax.parallel import mesh as mesh_lib
from mmjax.typing import Array


class Out(NamedTuple):
    """x_WTD: weighted sum of the chosen experts of every token.

    overflow_2: choices that were dropped, and all choices; None where none can be.
    """

    x_WTD: Array
    overflow_2: Array | None = None


class Axes(NamedTuple):
    """Devices of a mesh along the axes that experts know; 1 = none."""

    expert: int = 1
    tensor: int = 1


def expert_ffn(
    x_WTD: Array, routing: Routing, up_EDF: Array, gate_EDF: Array, down_EFD: Array,
    how: MoE = MoE(),
) -> Out:  # fmt: skip
    """What the experts make of W groups of T tokens; `how` they are computed, by its fields
    `implementation`, `block_rows`, `capacity_factor` and `exchange`."""
    matrices = (up_EDF, gate_EDF, down_EFD)
    arrays = routing._replace(aux_loss=None)
    mesh = jax.sharding.get_abstract_mesh()
    axes = Axes(*(dict(mesh.shape).get(name, 1) for name in Axes._fields))
    how = _possible(how, up_EDF.shape[1], up_EDF.shape[2] // axes.tensor, axes)
    if mesh.empty or math.prod(mesh.axis_sizes) == 1:
        return _totalled(_local(x_WTD, arrays, matrices, how, axes))

    def local(x_WTD, routing, *matrices):
        out = _local(x_WTD, routing, matrices, how, axes)
        return out._replace(x_WTD=jax.lax.psum(out.x_WTD, "tensor"))

    batch = mesh_lib.BATCH_AXES
    if len(x_WTD) % math.prod(mesh.shape[axis] for axis in batch):
        batch = ()  # each device computes all of them
    rows, wide = PartitionSpec(batch or None), PartitionSpec("expert", None, "tensor")
    return _totalled(
        jax.shard_map(
            local,
            in_specs=(rows, rows, wide, wide, PartitionSpec("expert", "tensor", None)),
            out_specs=rows,
            check_vma=False,
        )(x_WTD, arrays, *matrices)
    )


def _possible(how: MoE, width: int, inner: int, axes: Axes) -> MoE:
    """With what the devices of the mesh can do; a change is said once."""
    platform, asked = mesh_lib.platform(), how.implementation
    name, exchange = grouped.chosen(asked, platform, width, inner), how.exchange
    if asked not in ("auto", name):
        why = grouped.refusal(asked, platform, width, inner)
        console.say_once(f"MoE.implementation={asked!r} is computed by {name!r} here: {why}")
    if name in ("megablox", "triton") and platform == "cpu":
        console.say_once(f"MoE.implementation={name!r} is interpreted on cpu, which is slow")
    if exchange == "ragged" and axes.expert > 1 and platform != "tpu":
        console.say_once(
            f"MoE.exchange='ragged' is 'equal' here: {platform} has no such collective"
        )
        exchange = "equal"
    return dataclasses.replace(how, implementation=name, exchange=exchange)


def _totalled(out: Out) -> Out:
    """The sum over devices of what was dropped."""
    if out.overflow_2 is None:
        return out
    return out._replace(overflow_2=jnp.sum(jax.lax.stop_gradient(out.overflow_2), axis=0))


def _local(x_WTD, routing, matrices, how: MoE, axes: Axes) -> Out:
    """Of the groups of one device, with its experts and its part of their inner width."""
    if routing.dispatch_WTEC is not None:
        given = routing.dispatch_WTEC.astype(x_WTD.dtype)
        taken = routing.combine_WTEC.astype(x_WTD.dtype)
        y_WECD = _slots(jnp.einsum("WTD,WTEC->WECD", x_WTD, given), matrices, axes)
        return Out(jnp.einsum("WECD,WTEC->WTD", y_WECD, taken))
    if routing.token_WEC is not None:
        return Out(_expert_choice(x_WTD, routing, matrices, axes))
    num_experts, choices = len(matrices[0]) * axes.expert, routing.expert_WTX.shape[-1]
    weight_C = routing.weight_WTX.reshape(-1)
    expert_C = jnp.where(weight_C > 0, routing.expert_WTX.reshape(-1), num_experts)
    x_TD = x_WTD.reshape(-1, x_WTD.shape[-1])
    by = dispatch.sort(expert_C, num_experts)
    if axes.expert == 1:
        out_TD, kept = _sorted(x_TD, weight_C, by, choices, matrices, how)
        can_drop = how.implementation == "capacity"
    else:
        out_TD, kept = _exchanged(x_TD, weight_C, by, choices, matrices, how, axes.expert)
        can_drop = True
    overflow = None
    if can_drop:
        total = jnp.sum(by.count_G)
        overflow = jnp.stack([total - kept, total]).astype(jnp.float32)[None]
    return Out(out_TD.reshape(x_WTD.shape), overflow)


def _sorted(x_TD, weight_C, by, choices, matrices, how: MoE) -> tuple[Array, Array]:
    """The experts of a device on rows that it has; and how many choices found a slot."""
    slots, groups = grouped.lay(how.implementation, by, how.block_rows, how.capacity_factor)
    x_SD = dispatch.to_rows(x_TD, slots, choices)
    weight_S = dispatch.to_rows(weight_C, slots)
    y_SD = grouped.ffn(how.implementation, x_SD, weight_S, groups, matrices)
    kept = jnp.sum(slots.slot_C < len(slots.choice_S))
    return dispatch.from_rows(y_SD, slots, choices), kept


def _exchanged(x_TD, weight_C, by, choices, matrices, how: MoE, devices: int):
    """`_sorted` on the devices that hold the experts: rows go there and come back."""
    per_device = len(matrices[0])
    to = by.merged(per_device)
    size = grouped.room(len(weight_C), devices, how.capacity_factor)
    slots = dispatch.rooms(to, size)
    sent_G = jnp.minimum(to.count_G, size)
    received_G = _equal(sent_G) if how.exchange == "ragged" else None
    is_used_S = slots.choice_S < len(weight_C)
    choice_S = jnp.minimum(slots.choice_S, len(weight_C) - 1)
    expert_S = jnp.where(is_used_S, by.group_C[choice_S] % per_device, per_device)
    here = dispatch.sort(_equal(expert_S), per_device)
    x_RD = _exchange(dispatch.to_rows(x_TD, slots, choices), sent_G, received_G)
    weight_R = _equal(dispatch.to_rows(weight_C, slots))
    # An expert's room is of what there is to come, not of the rooms in which it comes.
    factor = how.capacity_factor * len(weight_C) / len(x_RD)
    there = dataclasses.replace(how, capacity_factor=factor)
    y_RD, kept_here = _sorted(x_RD, weight_R, here, 1, matrices, there)
    y_SD = _exchange(y_RD, received_G, sent_G)
    kept = jnp.sum(sent_G) - (jnp.sum(here.count_G) - kept_here)
    return dispatch.from_rows(y_SD, slots, choices), kept


def _equal(x_S: Array) -> Array:
    """Exchanges rooms of as many rows [n * size, ...] over `expert`."""
    return jax.lax.all_to_all(x_S, "expert", 0, 0, tiled=True)


def _exchange(x_SD: Array, sent_G: Array | None, received_G: Array | None) -> Array:
    """`_equal`; with numbers it sends the first rows of each room alone, which XLA can on TPU."""
    if sent_G is None or received_G is None:
        return _equal(x_SD)
    size = len(x_SD) // len(sent_G)
    start_G = jnp.arange(len(sent_G), dtype=jnp.int32) * size
    there_G = jnp.full_like(start_G, jax.lax.axis_index("expert") * size)
    return jax.lax.ragged_all_to_all(
        x_SD, jnp.zeros_like(x_SD), start_G, sent_G, there_G, received_G, axis_name="expert"
    )


def _slots(x_WECD, matrices, axes: Axes) -> Array:
    """Experts on as many slots of each group, [W, E, C, D]."""
    up_EDF, gate_EDF, down_EFD = matrices
    if axes.expert > 1:
        x_WECD = jax.lax.all_to_all(x_WECD, "expert", 1, 0, tiled=True)
    up_WECF = jnp.einsum("WECD,EDF->WECF", x_WECD, up_EDF.astype(x_WECD.dtype))
    gate_WECF = jnp.einsum("WECD,EDF->WECF", x_WECD, gate_EDF.astype(x_WECD.dtype))
    inner_WECF = jax.nn.silu(gate_WECF) * up_WECF
    y_WECD = jnp.einsum("WECF,EFD->WECD", inner_WECF, down_EFD.astype(x_WECD.dtype))
    if axes.expert > 1:
        y_WECD = jax.lax.all_to_all(y_WECD, "expert", 0, 1, tiled=True)
    return y_WECD


def _expert_choice(x_WTD, routing, matrices, axes: Axes) -> Array:
    groups, num_experts, capacity = routing.token_WEC.shape
    flat = routing.token_WEC.reshape(groups, -1)
    x_WECD = jnp.take_along_axis(x_WTD, flat[:, :, None], axis=1)
    y_WECD = _slots(x_WECD.reshape(groups, num_experts, capacity, -1), matrices, axes)
    y_WECD = y_WECD * routing.weight_WEC[..., None].astype(y_WECD.dtype)
    rows = jnp.arange(groups)[:, None]
    return jnp.zeros_like(x_WTD).at[rows, flat].add(y_WECD.reshape(groups, -1, y_WECD.shape[-1]))


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
