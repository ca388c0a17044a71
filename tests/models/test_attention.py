"""Every implementation of attention computes one rule: values, gradients, shards, memory."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import console
from mmjax.models import attention, choose, chunked, flash
from mmjax.models.attention import Visibility
from mmjax.parallel import MeshConfig
from mmjax.typing import General, InOrder, OneSegment

KERNELS = ("full", "chunked", "pallas", "splash")


def oracle(q, k, v, query, key, causal, isolate):
    """The rule in NumPy, a query at a time, in float64."""
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        seen = (query.segment_BL[b, i] == key.segment_BL[b]) & (key.segment_BL[b] != 0)
        if isolate:
            seen &= query.stream_BL[b, i] == key.stream_BL[b]
        if causal:
            seen &= key.order_BL[b] <= query.order_BL[b, i]
        if seen.any():
            own = h // (q.shape[2] // k.shape[2])
            score = (k[b, seen, own] @ q[b, i, h]) / np.sqrt(q.shape[-1])
            weight = np.exp(score - score.max())
            out[b, i, h] = weight / weight.sum() @ v[b, seen, own]
    return out


def numbers(rng, rows, length, kind):
    """Visibility of a kind: what padding, packing and orders may look like."""
    slot = np.tile(np.arange(length), (rows, 1))
    segment, order = np.ones((rows, length), int), slot.copy()
    if kind == "padded":
        segment = (slot < rng.integers(0, length + 1, (rows, 1))).astype(int)
    elif kind == "packed":
        segment = np.sort(rng.integers(1, 4, (rows, length)), axis=1)
        segment[:, -length // 4 :] = 0
    elif kind == "scattered":
        segment = rng.integers(0, 3, (rows, length))
        order = rng.integers(0, length, (rows, length))
    elif kind == "prefix":
        order = np.maximum(slot - length // 3, 0)
    stream = rng.integers(1, 4, (rows, length)) * (segment > 0)
    rule = InOrder() if kind == "padded" else General()
    return Visibility(*(np.asarray(x, np.int32) for x in (segment, stream, order)), rule)


def arrays(rng, rows, num_q, length, heads, kv_heads, width, dtype=np.float32):
    shapes = ((num_q, heads), (length, kv_heads), (length, kv_heads))
    return [jnp.asarray(rng.normal(size=(rows, *s, width)), dtype) for s in shapes]


def both(attend, q, k, v, weight):
    """Values and the three gradients of a weighted sum, float32."""

    @jax.jit
    def run(q, k, v):
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(weight.astype(out.dtype))

    return [np.asarray(x, np.float32) for x in run(q, k, v)]


def compared(name, case, causal, isolate, dtype=jnp.float32, block=512):
    """Largest difference to `full` in float32, relative to the largest value of all arrays."""
    rows, num_q, length, heads, kv_heads, width, kind = case
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, rows, num_q, length, heads, kv_heads, width)
    query = numbers(rng, rows, num_q, kind)
    key = query if num_q == length else numbers(rng, rows, length, kind)
    weight = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def attend(name, *qkv):
        return attention.attend(
            *qkv, query, key, causal=causal, isolate=isolate, implementation=name,
            query_block=block,
        )  # fmt: skip

    wanted = both(functools.partial(attend, "full"), q, k, v, weight)
    found = both(functools.partial(attend, name), *(x.astype(dtype) for x in (q, k, v)), weight)
    seen = attention.visible(query, key, causal=causal, isolate=isolate).any(axis=2)
    assert not found[0][~seen].any()  # what sees nothing is zero, and so is its gradient
    assert not found[1][~seen].any()
    scale = max(np.abs(a).max() for a in wanted)
    return max(np.abs(a - b).max() / scale for a, b in zip(wanted, found, strict=True))


# rows, queries, keys, heads, key heads, width, kind of visibility
SHORT = {
    "padded": (3, 20, 20, 4, 4, 8, "padded"),
    "packed": (2, 33, 33, 2, 2, 16, "packed"),
    "prefix": (2, 16, 16, 4, 2, 8, "prefix"),
    "scattered": (2, 24, 24, 6, 2, 8, "scattered"),
    "cross": (2, 12, 40, 2, 1, 8, "scattered"),
}
LONG = {
    "packed": (1, 600, 600, 2, 2, 8, "packed"),
    "prefix": (1, 530, 530, 2, 1, 8, "prefix"),
    "cross": (2, 30, 700, 2, 2, 8, "scattered"),
    "cross_back": (1, 700, 30, 2, 2, 8, "padded"),
}


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_the_rule_is_that_of_the_oracle(name, causal, isolate):
    rng = np.random.default_rng(1)
    q, k, v = arrays(rng, 2, 9, 9, 4, 2, 8)
    for kind in ("padded", "scattered"):
        place = numbers(rng, 2, 9, kind)
        found = attention.attend(
            q, k, v, place, place, causal=causal, isolate=isolate, implementation=name
        )
        wanted = oracle(*(np.float64(x) for x in (q, k, v)), place, place, causal, isolate)
        np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("case", SHORT)
@pytest.mark.parametrize("name", KERNELS[1:])
def test_short_rows(name, case, causal):
    assert compared(name, SHORT[case], causal, isolate=causal, block=16) < 2e-6


@pytest.mark.parametrize("case", LONG)
def test_long_rows_by_our_kernel(case):
    assert compared("pallas", LONG[case], causal=True, isolate=case == "packed") < 5e-6


@pytest.mark.parametrize("name", ["chunked", "pallas"])
def test_bfloat16_differs_by_its_rounding(name):
    assert compared(name, SHORT["scattered"], True, True, jnp.bfloat16) < 0.02
    assert compared(name, LONG["prefix"], True, False, jnp.bfloat16) < 0.02


def test_blocks_that_see_nothing_are_not_computed():
    from mmjax.models import flash_blocks
    from mmjax.models.flash_kernels import Plan

    plan = Plan(8, 1, 1, 1, 4, 4, False, 0, True)
    segment = np.array([[1] * 4 + [2] * 4 + [0] * 4], np.int32)
    order = np.arange(12, dtype=np.int32)[None]
    marks = np.stack([segment, order], axis=1)
    q_marks = np.stack([np.where(segment > 0, segment, -1), order], axis=1)
    sees = np.asarray(flash_blocks._sees(plan, jnp.asarray(q_marks), jnp.asarray(marks)))[0]
    assert sees.tolist() == [[True, False, False], [False, True, False], [False] * 3]
    flat = np.zeros_like(segment) + 1
    marks = np.stack([flat, order], axis=1)
    sees = np.asarray(flash_blocks._sees(plan, jnp.asarray(marks), jnp.asarray(marks)))[0]
    assert sees.tolist() == np.tri(3, dtype=bool).tolist()


# ---------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("name", ["chunked", "pallas", "splash"])
def test_shards_of_rows_and_heads_give_what_one_device_gives(name):
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, 8, 16, 16, 4, 2, 8)
    place, weight = numbers(rng, 8, 16, "padded"), jnp.asarray(rng.normal(size=q.shape))

    def attend(q, k, v):
        return attention.attend(
            q, k, v, place, place, causal=True, isolate=True, implementation=name
        )

    alone = both(attend, q, k, v, weight)
    with jax.set_mesh(MeshConfig(data=2, fsdp=2, tensor=2).make()):
        sharded = both(attend, q, k, v, weight)
    for a, b in zip(alone, sharded, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# ---------------------------------------------------------------------------------- the choice


def asked(**fields):
    return choose.Asked(**{
        "num_queries": 256, "num_keys": 256, "num_heads": 8, "kv_heads": 8, "head_width": 64,
        **fields,
    })  # fmt: skip


LENGTHS = {"query_rule": OneSegment(), "key_rule": OneSegment()}
ORDERED = {"query_rule": InOrder(), "key_rule": InOrder()}


@pytest.mark.parametrize(
    ("platform", "fields", "name"),
    [
        ("cpu", {}, "chunked"),
        ("tpu", {}, "pallas"),
        ("tpu", {"causal": True}, "pallas"),
        ("tpu", {"num_queries": 2048, "num_keys": 2048}, "pallas"),
        ("tpu", {"num_keys": 2048, "head_width": 128}, "splash"),
        ("tpu", {"num_keys": 2048, "head_width": 128, "causal": True}, "pallas"),
        ("tpu", {"num_queries": 640, "num_keys": 640, "head_width": 128, "causal": True,
                 **ORDERED}, "splash"),
        ("tpu", {"head_width": 512}, "chunked"),
        ("gpu", {}, "chunked"),
        ("gpu", LENGTHS, "cudnn"),
        ("gpu", {**LENGTHS, "isolate": True}, "chunked"),
        ("gpu", {**LENGTHS, "causal": True}, "chunked"),
        ("gpu", {**ORDERED, "causal": True}, "cudnn"),
        ("gpu", {**LENGTHS, "dtype": "float32"}, "chunked"),
        ("gpu", {**LENGTHS, "head_width": 100}, "chunked"),
    ],
)  # fmt: skip
def test_auto_takes_what_is_exact_and_suits(platform, fields, name):
    assert choose.chosen("auto", platform, asked(**fields)) == name


def test_what_refuses_falls_back_by_name_and_says_so_once(capsys):
    console.say_once.cache_clear()
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, 1, 8, 8, 2, 2, 8)
    place = numbers(rng, 1, 8, "prefix")
    for _ in range(2):
        attention.attend(q, k, v, place, place, causal=True, isolate=False, implementation="splash")
        attention.attend(q, k, v, place, place, causal=True, isolate=False, implementation="cudnn")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "attention='splash' is computed by 'chunked' here: it knows causal order" in said[0]
    assert "attention='cudnn' is computed by 'chunked' here: it is a kernel for NVIDIA" in said[1]


def test_slots_of_two_views_have_no_common_order():
    rng = np.random.default_rng(0)
    q, k, _ = arrays(rng, 1, 8, 8, 2, 2, 8)
    one, other = (numbers(rng, 1, 8, "padded") for _ in range(2))
    made = functools.partial(attention._asked, q, k, causal=True, isolate=False)
    assert isinstance(made(one, one).query_rule, InOrder)
    assert isinstance(made(one, other).query_rule, General)


# ---------------------------------------------------------------------------------- memory


def temporary_bytes(length: int) -> tuple[int, int]:
    """Of forward and backward pass of the reference; the largest array in its program."""
    shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    marks = jax.ShapeDtypeStruct((1, 2, length), jnp.int32)

    def run(q, k, v, marks):
        return jnp.sum(chunked.attention(q, k, v, marks, marks))

    lowered = jax.jit(jax.grad(run, argnums=(0, 1, 2))).lower(shape, shape, shape, marks)
    sizes = [
        int(np.prod([int(n) for n in found.split("x")[:-1]]))
        for found in re.findall(r"tensor<([\dx]+x[a-z]+\d+)>", lowered.as_text())
    ]
    return lowered.compile().memory_analysis().temp_size_in_bytes, max(sizes)


def test_memory_of_the_reference_grows_with_length_and_not_with_its_square():
    (small, _), (large, largest) = temporary_bytes(2048), temporary_bytes(4096)
    assert large < 2.2 * small
    assert largest < 4096 * 4096 // 8  # queries x keys alone would be 32 times as much as that


def test_our_kernel_keeps_no_array_of_queries_by_keys():
    q = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.bfloat16)
    marks = jax.ShapeDtypeStruct((1, 2, 1024), jnp.int32)
    run = lambda *x: jnp.sum(flash.attention(*x).astype(jnp.float32))
    program = jax.make_jaxpr(jax.grad(run, argnums=(0, 1, 2)))(q, q, q, marks, marks)
    made = [v.aval.shape for eqn in program.jaxpr.eqns for v in eqn.outvars]
    assert all(np.prod(shape, dtype=int) < 1024 * 1024 for shape in made)
    names = re.findall(r"mmjax_attention_\w+", str(program))
    assert {"mmjax_attention_forward", "mmjax_attention_backward_q"} <= set(names)
