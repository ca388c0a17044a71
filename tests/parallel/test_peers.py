"""Signs of life between processes, over a store in memory."""

from __future__ import annotations

import threading
import time

import pytest
from store import Shared, Store

from mmjax.parallel.peers import End, Peers


@pytest.fixture
def shared():
    return Shared(3)


@pytest.fixture
def peers(shared):
    return [Peers(Store(shared), i, 3, "signs") for i in range(3)]


def test_nobody_is_silent_while_all_give_signs(peers):
    for _ in range(4):
        for one in peers:
            one.beat()
        time.sleep(0.05)
    assert [one.silent(0.15) for one in peers] == [[], [], []]


def test_the_main_process_names_one_without_a_sign(peers):
    for _ in range(4):
        time.sleep(0.1)
        for one in (peers[0], peers[2]):
            one.beat()
    assert peers[0].silent(0.2) == [1]
    assert peers[2].silent(0.2) == []  # it hears the main process alone


def test_the_others_notice_a_main_process_without_a_sign(peers):
    for _ in range(4):
        time.sleep(0.1)
        for one in peers[1:]:
            one.beat()
    assert [one.silent(0.2) for one in peers[1:]] == [[0], [0]]


def test_a_coordinator_that_does_not_answer_is_noticed(peers, shared):
    shared.is_stopped = True
    threading.Thread(target=peers[1].beat, daemon=True).start()
    time.sleep(0.3)
    assert peers[1].silent(0.2) == [0]
    shared.is_stopped = False


def test_what_a_process_tells_at_its_end_reaches_all(peers):
    peers[2].end(74, "the disk is full")
    for one in (peers[0], peers[1]):
        one.beat()
    assert [one.ended for one in peers] == [End(2, 74, "the disk is full")] * 3


def test_the_first_end_counts(peers):
    peers[0].end(70, "not finite")
    peers[1].beat()
    peers[1].end(69, "a collective failed")
    assert peers[1].ended == End(0, 70, "not finite")


def test_a_sign_takes_two_round_trips(shared):
    stores = [Store(shared) for _ in range(3)]
    for i, store in enumerate(stores):
        Peers(store, i, 3, "signs").beat()
    assert [store.round_trips for store in stores] == [2, 2, 2]
