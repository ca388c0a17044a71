"""What `mmjax plan` estimates of a step against what XLA:TPU says of it."""

from __future__ import annotations

import importlib.util
import json

import plans
import pytest

pytestmark = [pytest.mark.compile, pytest.mark.timeout(3600)]

SMALL = ("dense_full_fsdp", "experts_none_fsdp")  # on every submission; the others nightly


@pytest.fixture(scope="module", params=plans.PROGRAMS)
def found(request, in_a_process, tmp_path_factory):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no compiler for TPU here: `make test-compile` sets one up")
    out = tmp_path_factory.mktemp("plan")
    in_a_process("plans.py", str(out), "v5e-4", request.param)
    return json.loads((out / f"{request.param}.json").read_text())


def test_arguments_are_exact(found):
    assert found["estimated"]["arguments"] == found["compiled"]["arguments"]


def test_memory_is_within_15_percent(found):
    assert found["estimated"]["bytes"] == pytest.approx(found["compiled"]["bytes"], rel=0.15)
