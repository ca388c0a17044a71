"""`mmjax doctor CONFIG`: what a host is looked at for before a run compiles there."""

from __future__ import annotations

import dataclasses
import json

import mini
import pytest

from mmjax import cli
from mmjax.cli import preflight
from mmjax.modalities.codes import Codes
from mmjax.modalities.image import Image
from mmjax.plan import topology


def looked(experiment, workdir, name: str = "") -> dict[str, preflight.Row]:
    return {row.name: row for row in preflight.preflight(experiment, str(workdir), name)}


def test_a_host_that_is_ready(tmp_path, capsys):
    args = ["doctor", f"{mini.QUICKSTART}:tiny", "--workdir", str(tmp_path / "run")]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "PROBLEM" not in out
    for name in ("python", "jaxlib", "workdir", "data masked", "disk"):
        assert f"ok      {name}" in out
    assert list((tmp_path / "run").iterdir()) == []
    assert cli.main([*args, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["ok"] for row in rows} == {True}


def test_all_problems_are_told_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    args = ["doctor", f"{mini.QUICKSTART}:tiny", "--workdir", str(tmp_path / "file")]
    assert cli.main([*args, "--topology", "h100x8"]) == 3
    out, err = capsys.readouterr()
    assert "PROBLEM workdir" in out
    assert "PROBLEM devices" in out
    assert "a host of h100x8 has 8 x NVIDIA H100 80GB HBM3" in err
    assert "plugin: jax-cuda13-plugin is not installed" in err


def test_data_that_is_absent_or_empty(tmp_path, monkeypatch):
    class Empty(mini.Numbers):
        def open(self, split):
            return []

    class Absent(mini.Numbers):
        def open(self, split):
            raise ValueError("Folder: root='/absent' does not exist;\nname another.")

    rows = looked(mini.with_source(Empty()), tmp_path)
    assert rows["data text"] == ("data text", False, "split 'train' has no records")
    rows = looked(mini.with_source(Absent()), tmp_path)
    assert rows["data text"].found == "Folder: root='/absent' does not exist; name another."


def test_a_tokenizer_that_is_not_there(tmp_path):
    base = mini.get_config()
    codes = Codes(base=Image(size=(8, 8), patch=4), path=str(tmp_path / "codes"))
    experiment = dataclasses.replace(base, modalities={**base.modalities, "image": codes})
    row = looked(experiment, tmp_path)["tokenizer image"]
    assert not row.ok
    assert "is not there; train it, or copy it to where this host sees it" in row.found
    (tmp_path / "codes").mkdir()
    assert looked(experiment, tmp_path)["tokenizer image"].ok


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "ROOM", 1e18)
    assert not looked(mini.get_config(), tmp_path)["disk"].ok


@pytest.mark.parametrize(
    ("version", "rule", "ok"),
    [
        ("0.10.2", ">=0.10.2,<0.13", True),
        ("0.12.0.1", "<0.13,>=0.10.2", True),
        ("0.13.0", ">=0.10.2,<0.13", False),
        ("0.9.9", ">=0.10.2", False),
        ("0.10.3.dev1+g12", ">=0.10.2", True),
        ("2.13.0", "==2.13.0", True),
        ("3", ">=3.0.1", False),
        (None, ">=1", False),
        ("1.0", "", True),
    ],
)
def test_versions(version, rule, ok):
    assert preflight._within("x", version, rule).ok is ok


def test_another_jax_is_told(tmp_path, monkeypatch):
    real = preflight._version
    monkeypatch.setattr(preflight, "_version", lambda p: "0.9.0" if p == "jax" else real(p))
    rows = looked(mini.get_config(), tmp_path)
    assert rows["jax"].found.startswith("0.9.0, asked for is ")
    assert rows["jaxlib"].found.endswith("and jax is 0.9.0")


def test_a_slice_of_another_kind(monkeypatch):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    preflight._of_slice(topology.parse("v5e-16"))
    preflight._of_slice(topology.parse("2xv5e-16"))
    with pytest.raises(ValueError, match="the slice is v5litepod-16, not that of v5e-64"):
        preflight._of_slice(topology.parse("v5e-64"))


def test_what_is_refused(capsys):
    for args, message in (
        (["--workdir", "w"], "--workdir, --topology: write CONFIG before it"),
        (["--total_steps=3"], "--total_steps=3: write CONFIG before it"),
        ([str(mini.QUICKSTART)], "CONFIG needs --workdir DIR"),
        ([str(mini.QUICKSTART), "--workdir", "w", "--topology", "x9"], "unknown"),
        ([str(mini.QUICKSTART), "--workdir", "w", "--total_stepz", "1"], "total_steps"),
    ):
        assert cli.main(["doctor", *args]) == 2
        assert message in capsys.readouterr().err
