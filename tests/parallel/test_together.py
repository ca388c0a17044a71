"""Jitted functions of several processes wait for one another after they are compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.parallel import distributed, together


def double(x):
    return 2 * x


def test_a_single_process_gets_what_jax_gives():
    assert type(together.jit(double)) is type(jax.jit(double))


def test_each_kind_of_arguments_is_waited_for_once(monkeypatch):
    waited = []
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "barrier", waited.append)
    run = together.jit(double, donate_argnums=0)
    assert waited == []
    for _ in range(3):
        np.testing.assert_array_equal(run(jnp.arange(3)), [0, 2, 4])
    assert waited == ["compiled double"]
    np.testing.assert_array_equal(run(np.arange(3)), [0, 2, 4])
    assert run(jnp.arange(2.0)).dtype == jnp.float32
    assert waited == ["compiled double"] * 3
    given = jnp.arange(3)
    run(given)
    with pytest.raises(RuntimeError, match="deleted"):  # options are those of jax.jit
        np.asarray(given)


def test_any_process_asks_the_coordinator(monkeypatch):
    assert distributed.any_process(True)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "gathered", lambda name, text: [text, ""])
    monkeypatch.setattr(distributed, "of_main", lambda text: text)
    assert distributed.any_process(True)
    assert not distributed.any_process(False)
