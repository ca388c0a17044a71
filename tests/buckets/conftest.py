"""One storage server for the tests of a process; each test has it empty and without faults."""

from __future__ import annotations

import logging

import pytest
from buckets import server

from mmjax.files import bucket


@pytest.fixture(scope="session")
def _served():
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with server.serving() as served:
        yield served


@pytest.fixture
def service(_served):
    """The server."""
    _served.reset()
    bucket._seen.clear()
    return _served


@pytest.fixture
def address(service) -> str:
    """A workdir that does not exist yet, in a bucket that does."""
    return f"{service.make('mmjax-test')}/runs/one"
