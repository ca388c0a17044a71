"""What one reads to know training: the list of CONTRIBUTING, held against real call stacks."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import mini
import pytest

import mmjax
from mmjax import cli, train
from mmjax.objectives import generative

PACKAGE = Path(mmjax.__file__).resolve().parent
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"


def reading_list() -> list[str]:
    text = CONTRIBUTING.read_text().partition("To know training, read")[2].partition("\n\n")[0]
    return re.findall(r"`(\S+\.py)`", text)


def files_on_the_stack() -> set[str]:
    paths = [Path(frame.filename).resolve() for frame in traceback.extract_stack()]
    return {str(p.relative_to(PACKAGE)) for p in paths if p.is_relative_to(PACKAGE)}


def test_the_reading_list_is_short():
    files = reading_list()
    assert len(files) == len(set(files)) <= 10
    assert sum(len((PACKAGE / f).read_text().splitlines()) for f in files) <= 2000


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """Files on the stack of the first call of a step, and where a loss gets its value."""
    found: dict[str, set[str]] = {}
    compile_all, per_sample = train.program.compile_all, generative.per_sample

    def first_call(executable):
        def call(*arguments):
            found.setdefault("step", files_on_the_stack())
            return executable(*arguments)

        return call

    def traced(*arguments):
        found.setdefault("loss", files_on_the_stack())
        return per_sample(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train.program,
            "compile_all",
            lambda *a: {key: first_call(e) for key, e in compile_all(*a).items()},
        )
        patch.setattr(generative, "per_sample", traced)
        workdir = str(tmp_path_factory.mktemp("reading") / "run")
        patch.setattr(mmjax.cli.cpu, "is_alone", lambda: False)
        assert cli.main(["train", mini.__file__, "--workdir", workdir, "--total-steps", "1"]) == 0
    return found


def test_a_step_is_called_from_files_of_the_list(stacks):
    assert {"cli/train.py", "train.py"} <= stacks["step"] <= set(reading_list())


def test_a_loss_is_computed_by_files_of_the_list(stacks):
    ours = {"run/program.py", "step.py", "objectives/objective.py", "objectives/generative.py"}
    assert ours <= stacks["loss"] <= set(reading_list())
