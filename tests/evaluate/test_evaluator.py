"""What evaluators share."""

from __future__ import annotations

import threading
import types

import pytest

from mmjax.evaluate.evaluator import at_once


def view(devices: int):
    return types.SimpleNamespace(
        program=types.SimpleNamespace(mesh=types.SimpleNamespace(size=devices))
    )


def test_on_one_device_two_items_are_under_way_at_once():
    both = threading.Barrier(2, timeout=30)  # raises unless two threads come
    assert at_once(view(1), lambda i: (both.wait(), 10 * i)[1], range(2)) == [0, 10]


def test_on_several_devices_items_follow_one_another():
    threads, order = set(), []

    def note(i):
        threads.add(threading.get_ident())
        order.append(i)
        return i

    assert at_once(view(8), note, range(20)) == order == list(range(20))
    assert len(threads) == 1


def test_an_error_of_an_item_comes_out():
    def fail(i):
        raise ValueError(f"item {i}")

    with pytest.raises(ValueError, match="item 0"):
        at_once(view(1), fail, range(3))
