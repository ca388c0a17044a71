"""Where the choices of tokens lie when they are sorted by expert, and how rows get there and back.

A choice is one of the X experts of one of T tokens, C = T X in all. Everything is a gather, in both
directions: accelerators are slow at scatters.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.typing import Array


class Sorted(NamedTuple):
    """Choices in the order of their groups.

    Fields:
      group_C: group of each choice; as many as there are groups = of none.
      order_C: the choices, those of one group in their own order, then those of none.
      place_C: where a choice is in that order. count_G: choices of each group.
    """

    group_C: Array
    order_C: Array
    place_C: Array
    count_G: Array

    def merged(self, size: int) -> Sorted:
        """Every `size` neighbouring groups as one."""
        count_G = jnp.sum(self.count_G.reshape(-1, size), axis=1)
        return Sorted(self.group_C // size, self.order_C, self.place_C, count_G)


def sort(group_C: Array, num_groups: int) -> Sorted:
    """Sorts choices by group (int32 [C]); `num_groups` = a choice of none."""
    iota_C = jnp.arange(len(group_C), dtype=jnp.int32)
    one_hot_CG = (group_C[:, None] == jnp.arange(num_groups)[None]).astype(jnp.int32)
    count_G = jnp.sum(one_hot_CG, axis=0)
    _, order_C = jax.lax.sort((group_C, iota_C), num_keys=1, is_stable=True)
    _, place_C = jax.lax.sort((order_C, iota_C), num_keys=1, is_stable=False)
    return Sorted(group_C, order_C, place_C, count_G)


class Slots(NamedTuple):
    """S rows: the choice in each slot (C = none), and the slot of each choice (S = none)."""

    choice_S: Array
    slot_C: Array


def packed(by: Sorted, num_slots: int) -> Slots:
    """One group directly behind the other, and what is left of the S >= C slots at the end."""
    num_choices, used = len(by.group_C), jnp.sum(by.count_G)
    order_S = jnp.pad(by.order_C, (0, num_slots - num_choices))
    choice_S = jnp.where(jnp.arange(num_slots) < used, order_S, num_choices)
    return Slots(choice_S, jnp.where(by.group_C < len(by.count_G), by.place_C, num_slots))


def aligned(by: Sorted, rows: int, num_blocks: int) -> tuple[Slots, Array, Array]:
    """Each group from the start of a block of rows on: slots, the group of each block [N], and the
    block before which those of each group end [G]."""
    num_groups = len(by.count_G)
    blocks_G = -(-by.count_G // rows)
    end_G = jnp.cumsum(blocks_G)
    group_N = jnp.sum(jnp.arange(num_blocks)[:, None] >= end_G[None], axis=1)
    group_N = jnp.minimum(group_N, num_groups - 1).astype(jnp.int32)
    group_S = jnp.repeat(group_N, rows, total_repeat_length=num_blocks * rows)
    slots = _lay(by, group_S, (end_G - blocks_G) * rows, num_blocks * rows)
    return slots, group_N, end_G.astype(jnp.int32)


def rooms(by: Sorted, size: int) -> Slots:
    """A room of as many rows for each group; a choice that finds its room full gets no slot."""
    num_groups = len(by.count_G)
    group_S = jnp.repeat(jnp.arange(num_groups), size, total_repeat_length=num_groups * size)
    return _lay(by, group_S, jnp.arange(num_groups) * size, num_groups * size, size)


def _lay(by: Sorted, group_S: Array, start_G: Array, num_slots: int, most: int = 0) -> Slots:
    """Groups from the slots `start_G` on, with at most so many rows each (0 = any number)."""
    num_choices, num_groups = len(by.group_C), len(by.count_G)
    first_G = jnp.cumsum(by.count_G) - by.count_G
    count_G = jnp.minimum(by.count_G, most) if most else by.count_G
    row_S = jnp.arange(num_slots) - start_G[group_S]
    at_S = jnp.minimum(first_G[group_S] + row_S, num_choices - 1)
    choice_S = jnp.where(row_S < count_G[group_S], by.order_C[at_S], num_choices)
    group_C = jnp.minimum(by.group_C, num_groups - 1)
    row_C = by.place_C - first_G[group_C]
    has_slot_C = (by.group_C < num_groups) & (row_C < count_G[group_C])
    return Slots(choice_S, jnp.where(has_slot_C, start_G[group_C] + row_C, num_slots))


def to_rows(x_T: Array, slots: Slots, choices: int = 1) -> Array:
    """The token of each slot [S, ...], zero where there is none; each token has so many choices."""
    return _spread(x_T, slots, choices)


def from_rows(y_S: Array, slots: Slots, choices: int = 1) -> Array:
    """Sum over the choices of a token of what is in their slots [T, ...]; no slot = zero."""
    return _collect(y_S, slots, choices)


# Each is the transpose of the other. What they keep has one dim: on TPU a last dim of 1 or 2 takes
# as much memory as one of 128.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spread(x_T, slots: Slots, choices: int):
    num_choices = len(slots.slot_C)
    token_S = jnp.where(slots.choice_S < num_choices, slots.choice_S // choices, len(x_T))
    return _take(x_T, token_S)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _collect(y_S, slots: Slots, choices: int):
    slot_TX = slots.slot_C.reshape(-1, choices)
    return sum(_take(y_S, slot_TX[:, i]) for i in range(choices))


def _take(x: Array, index: Array) -> Array:
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


_spread.defvjp(
    lambda x, slots, choices: (_spread(x, slots, choices), slots),
    lambda choices, slots, d: (_collect(d, slots, choices), None),
)
_collect.defvjp(
    lambda y, slots, choices: (_collect(y, slots, choices), slots),
    lambda choices, slots, d: (_spread(d, slots, choices), None),
)
