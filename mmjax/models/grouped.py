"""SwiGLU of rows that are sorted by expert, by name of the product that computes it.

`capacity` is a product a batch of equal rooms; `ragged` is `jax.lax.ragged_dot`, a grouped kernel
of XLA on TPU and a product with all experts elsewhere; `megablox` is the Pallas kernel for TPU that
comes with jax (Gale et al. 2022, arXiv 2211.15841); `triton` is ours for GPU; `blocks` is a loop
over blocks of rows, for CPU. Derivatives are by hand: what the last product gave is not kept, and
rows behind those that are used may hold anything, which reaches no result.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.models import dispatch, fused, grouped_blocks
from mmjax.parallel import mesh
from mmjax.typing import Array

LANES = 128  # of a TPU: rows that its kernel takes at least
TILE_ROWS = 512  # rows that it takes at once where there are as many
NAMES = ("auto", "blocks", "ragged", "megablox", "triton", "capacity")
SMALLEST = 16  # dim of a product of a GPU's matrix units


class Groups(NamedTuple):
    """Rows of each expert [E]; for `triton` and `blocks`, whose experts begin with a block of rows:
    the expert of each block [N], and where the blocks of each expert end [E]."""

    count_E: Array
    expert_N: Array = None
    end_E: Array = None


def chosen(implementation: str, platform: str, width: int, inner: int) -> str:
    """What computes experts of these widths: what is asked for, where that can; for `auto`, and in
    place of what cannot, the kernel of the platform.

    Raises:
      ValueError: there is no implementation of that name.
    """
    if implementation not in NAMES:
        raise ValueError(
            f"MoE: implementation={implementation!r} does not exist; use one of {', '.join(NAMES)}."
        )
    if implementation != "auto" and not refusal(implementation, platform, width, inner):
        return implementation
    if platform == "tpu":
        return "ragged" if refusal("megablox", platform, width, inner) else "megablox"
    if platform == "gpu":
        return "ragged" if refusal("triton", platform, width, inner) else "triton"
    return "blocks"


def refusal(implementation: str, platform: str, width: int, inner: int) -> str:
    """Why an implementation cannot compute them; empty when it can. On CPU the kernels are
    interpreted, which is exact and slow."""
    if implementation == "megablox" and platform == "gpu":
        return "it is a kernel for TPU"
    if implementation == "megablox" and platform == "tpu" and (width % LANES or inner % LANES):
        return f"widths of {width} and {inner} are no multiples of {LANES}"
    if implementation == "triton" and platform == "tpu":
        return "it is a kernel for GPU"
    if implementation == "triton" and (width % SMALLEST or inner % SMALLEST):
        return f"widths of {width} and {inner} are no multiples of {SMALLEST}"
    return ""


def room(num_choices: int, parts: int, factor: float) -> int:
    """Rows for each of so many parts: a fair share times a factor, at most all."""
    fair = -(-num_choices * factor // parts)
    return min(num_choices, -(-int(fair) // 8) * 8)


def lay(
    implementation: str, by: dispatch.Sorted, block_rows: int, capacity_factor: float
) -> tuple[dispatch.Slots, Groups]:
    """The buffer in which an implementation wants rows."""
    num_choices, num_experts = len(by.group_C), len(by.count_G)
    if implementation == "capacity":
        slots = dispatch.rooms(by, room(num_choices, num_experts, capacity_factor))
        return slots, Groups(by.count_G)
    if implementation in ("blocks", "triton"):
        return _blocks(implementation, by, block_rows)
    # The kernel of TPU takes whole tiles; XLA's takes any number of rows.
    rows = TILE_ROWS if num_choices >= TILE_ROWS else LANES
    rows = rows if implementation == "megablox" else 1
    return dispatch.packed(by, -(-num_choices // rows) * rows), Groups(by.count_G)


def _blocks(implementation, by, block_rows) -> tuple[dispatch.Slots, Groups]:
    num_choices, num_experts = len(by.group_C), len(by.count_G)
    if implementation == "triton":  # its tiles are powers of two
        rows = max(SMALLEST, 1 << (min(block_rows, num_choices).bit_length() - 1))
    else:
        rows = min(block_rows, -(-num_choices // 8) * 8)
    slots, expert_N, end_E = dispatch.aligned(by, rows, num_choices // rows + num_experts)
    return slots, Groups(by.count_G, expert_N, end_E)


def ffn(
    implementation: str,
    x_SD: Array,
    weight_S: Array,
    groups: Groups,
    matrices: tuple[Array, Array, Array],
) -> Array:
    """weight * SwiGLU of each row by its expert, [S, D]; `matrices` are up, gate and down."""
    if implementation == "blocks":
        x_NbD = x_SD.reshape(len(groups.expert_N), -1, x_SD.shape[-1])
        weight_Nb = weight_S.reshape(x_NbD.shape[:2])
        y_NbD = grouped_blocks.ffn(x_NbD, weight_Nb, groups.end_E, *matrices)
        return y_NbD.reshape(x_SD.shape)
    return _ffn(implementation, x_SD, weight_S, groups, *matrices)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ffn(implementation, x_SD, weight_S, groups, up_EDF, gate_EDF, down_EFD):
    return _forward(implementation, x_SD, weight_S, groups, up_EDF, gate_EDF, down_EFD)[0]


def _forward(implementation, x_SD, weight_S, groups, *matrices):
    up_EDF, gate_EDF, down_EFD = (w.astype(x_SD.dtype) for w in matrices)
    product = functools.partial(_product, implementation, groups)
    up_SF, gate_SF = product(x_SD, up_EDF), product(x_SD, gate_EDF)
    inner_SF = jax.nn.silu(gate_SF) * up_SF * weight_S[:, None].astype(x_SD.dtype)
    return product(inner_SF, down_EFD), (x_SD, weight_S, groups, up_SF, gate_SF, *matrices)


def _backward(implementation, residuals, d_SD):
    x_SD, weight_S, groups, up_SF, gate_SF, *matrices = residuals
    up_EDF, gate_EDF, down_EFD = (w.astype(x_SD.dtype) for w in matrices)
    product = functools.partial(_product, implementation, groups)
    outer = functools.partial(_outer, implementation, groups)
    weight_S1, d_SF = weight_S[:, None].astype(x_SD.dtype), product(d_SD, down_EFD, True)
    inner_SF, d_up_SF, d_gate_SF = fused.gated_backward(up_SF, gate_SF, d_SF * weight_S1)
    # The output is linear in the weight, so what it gave without one need not be made or kept.
    d_weight_S = jnp.sum((d_SF * inner_SF).astype(jnp.float32), axis=1).astype(weight_S.dtype)
    # With the width before the inner one, as of the others: along it fsdp takes gradients apart,
    # which XLA:TPU does not do along the last dim of what a kernel gives.
    d_down_EDF = outer(d_SD, inner_SF * weight_S1, matrices[2].dtype)
    d_x_SD = product(d_up_SF, up_EDF, True) + product(d_gate_SF, gate_EDF, True)
    d_up_EDF = outer(x_SD, d_up_SF, matrices[0].dtype)
    d_gate_EDF = outer(x_SD, d_gate_SF, matrices[1].dtype)
    d_down_EFD = jnp.swapaxes(d_down_EDF, 1, 2)
    return d_x_SD, d_weight_S, None, d_up_EDF, d_gate_EDF, d_down_EFD


_ffn.defvjp(_forward, _backward)


def _product(implementation: str, groups: Groups, x_SI, w_EIO, is_transposed: bool = False):
    """Each row times the matrix of its expert, [S, O]; `is_transposed`: w is [E, O, I]."""
    if implementation == "capacity":
        x_ECI = x_SI.reshape(len(w_EIO), -1, x_SI.shape[-1])
        y_ECO = jnp.einsum("ECI,EOI->ECO" if is_transposed else "ECI,EIO->ECO", x_ECI, w_EIO)
        return y_ECO.reshape(len(x_SI), -1)
    if implementation == "ragged":
        w_EIO = jnp.swapaxes(w_EIO, 1, 2) if is_transposed else w_EIO
        return jax.lax.ragged_dot(x_SI, w_EIO, groups.count_E)
    if implementation == "megablox":
        from mmjax.models import grouped_tpu

        return grouped_tpu.product(x_SI, w_EIO, groups.count_E, is_transposed, _interpret())
    from mmjax.models import grouped_gpu

    used = groups.end_E[-1]
    return grouped_gpu.product(x_SI, w_EIO, groups.expert_N, used, is_transposed, _interpret())


def _outer(implementation: str, groups: Groups, x_SI, d_SO, dtype):
    """The sum over the rows of each expert of x times d, [E, I, O]."""
    num_experts = len(groups.count_E)
    if implementation == "capacity":
        x_ECI, d_ECO = (a.reshape(num_experts, -1, a.shape[-1]) for a in (x_SI, d_SO))
        return jnp.einsum("ECI,ECO->EIO", x_ECI, d_ECO, preferred_element_type=dtype)
    if implementation == "ragged":
        by_row = jax.lax.RaggedDotDimensionNumbers(
            dot_dimension_numbers=(((0,), (0,)), ((), ())),
            lhs_ragged_dimensions=[0], rhs_group_dimensions=[],
        )  # fmt: skip
        return jax.lax.ragged_dot_general(
            x_SI, d_SO, groups.count_E, by_row, preferred_element_type=dtype
        )
    if implementation == "megablox":
        from mmjax.models import grouped_tpu

        return grouped_tpu.outer(x_SI, d_SO, groups.count_E, dtype, _interpret())
    from mmjax.models import grouped_gpu

    rows = len(x_SI) // len(groups.expert_N)
    return grouped_gpu.outer(x_SI, d_SO, groups.end_E, rows, dtype, _interpret())


def _interpret() -> bool:
    return mesh.platform() == "cpu"
