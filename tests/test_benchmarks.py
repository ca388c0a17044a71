"""The benchmarks run, and what they compare is comparable."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import numpy as np
import own
import pytest

from mmjax import config
from mmjax.typing import Piece


@pytest.mark.ci
def test_all_loaders_hold_the_same_epoch(root, tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/data.py", "--samples", "128", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--no-bars", "--folder", str(tmp_path), "--out", str(out)],
        cwd=root, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found["contents"].values()) == {found["contents"]["memory"]}
    assert len(found["contents"]) == 6
    assert min(found["cpu_ms"].values()) > 0


@pytest.mark.ci
def test_the_time_of_encoding_is_told_by_modality(root, tmp_path):
    out = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/modalities.py", "--rounds", "1", "--out", str(out)],
        cwd=root, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {"image", "text", "depth log"} <= set(found)
    assert all(row["us"] > 0 and row["tokens"] > 0 for row in found.values())


@pytest.mark.slow
def test_gaps_between_executables_of_the_loop_are_read_from_a_trace(root, tmp_path):
    out = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/host.py", "--steps", "5", "--no-bars", "--out", str(out)],
        cwd=root, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["gap_ms"]) == found["executions"] - 1
    assert min(found["gap_ms"]) > 0
    assert 0.5 < found["inside"] < 1


@pytest.mark.slow
def test_the_cost_of_verification_is_measured_in_a_run(root, tmp_path):
    out = tmp_path / "found.json"
    program = ["benchmarks/verify.py", "--config", "configs/quickstart.py:tiny"]
    done = subprocess.run(
        [sys.executable, *program, "--steps", "101", "--limit", "1000", "--out", str(out)],
        cwd=root, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["saves"] == 1
    assert 0 < found["verify"] < found["steps"] * 1000
    assert found["ratio"] > 0


@pytest.mark.nightly
def test_what_watching_costs_is_measured_in_two_processes(root):
    env = {**os.environ, "PYTHONPATH": str(root / "tests")}
    env.pop("XLA_FLAGS", None)  # a device a process, as `four` is made for
    done = subprocess.run(
        [sys.executable, "benchmarks/watch.py", "tests/four.py", "--steps", "40"],
        cwd=root, capture_output=True, text=True, timeout=900, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["steps"] == 20
    assert 0 < found["watch_share"] < found["share"] < 0.5


def test_a_saved_program_is_read(root, tmp_path):
    gather = "bf16[8,1024]{1,0} all-gather(%x), channel_id=1, dimensions={0}"
    cycles = 'backend_config={"window_config":{"estimated_cycles":"3000000"}}'
    text = f"""HloModule jit_f
ENTRY %main (x: bf16[1,1024]) -> bf16[8,1024] {{
  %x = bf16[1,1024]{{1,0}} parameter(0)
  %g = {gather}
  ROOT %y = bf16[8,1024]{{1,0}} tanh(%g), {cycles}, metadata={{op_name="tanh"}}
}}
"""
    (tmp_path / "f.txt").write_text(text)
    command = [sys.executable, "benchmarks/compiled.py", "--read", str(tmp_path / "f.txt")]
    command += ["--topology", "v5e-8", "--min-mib", "0.01"]
    run = lambda *more: (
        subprocess.run(
            [*command, *more], cwd=root, capture_output=True, text=True, check=True
        ).stdout
    )
    found = json.loads(run("--json"))["f"]
    assert found["collectives"]["all-gather"]["by_dtype"] == {"bf16": 16384}
    assert found["estimated_seconds"] == pytest.approx(0.002)  # at 1.5 GHz
    assert [a["shape"] for a in found["arrays"]] == [[8, 1024]]
    shown = run()
    assert "busy         2.00 ms (estimated)" in shown
    assert "all-gather   1: bf16 0.0 MiB" in shown


@pytest.mark.slow
def test_routers_are_compared_at_equal_flops(root, tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/routers.py", "--steps", "20", "--seeds", "1"]
    done = subprocess.run(
        [*command, "--arms", "dense", "token_choice", "expert_choice", "--out", str(out)],
        cwd=root, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    arms = json.loads(out.read_text())["arms"]
    flops = [arm["flops_per_token"] for arm in arms.values()]
    assert max(flops) <= 1.06 * min(flops)
    for arm in arms.values():
        assert 0 < arm["runs"][0]["score"] < 1
    assert arms["expert_choice"]["runs"][0]["load_max"] == pytest.approx(1)  # by construction
    assert arms["token_choice"]["runs"][0]["load_max"] > 1


@pytest.mark.slow
def test_scaling_is_told_of_every_topology_up_to_a_size(root):
    command = [sys.executable, "benchmarks/scale.py", "--most", "16"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["scaling"], r["topology"]) for r in rows] == [
        ("weak", "v5e-16"), ("weak", "v5p-32"), ("weak", "2xh100x8"),
        ("strong", "v5e-16"), ("strong", "v5p-32"),
    ]  # fmt: skip
    assert all(r["fits"] and r["devices"] == 16 for r in rows)
    assert [list(r["ms"]) for r in rows[:3]] == [
        ["compute", "hbm", "ici"], ["compute", "hbm", "ici"], ["compute", "hbm", "ici", "dcn"]
    ]  # fmt: skip


@pytest.mark.slow
def test_a_layer_of_experts_equals_the_plain_one_and_takes_turns_with_it(root):
    command = [sys.executable, "benchmarks/experts.py", "--experts", "4", "--rounds", "2"]
    command += ["--tokens", "256", "--width", "32", "--inner", "32"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["cpu_ms"]["4"]) == {"mmjax", "plain"}
    assert len(found["ratio"]["4"]) == 3


@pytest.fixture
def own_data(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("own_data")


def test_own_data_ranks_are_those_of_an_oracle(own_data):
    rng = np.random.default_rng(0)
    held_out = [({"text": Piece(np.zeros((1, 3)), ids_L=np.array([i // 2]))}, i) for i in range(6)]
    for pieces, _ in held_out:
        pieces["image"] = pieces["text"]
    held_out[5][0]["image"] = None
    vectors = {name: rng.normal(size=(6, 4)) for name in ("image", "text")}
    found = own_data.ranks(vectors, held_out)
    expected = []
    for i in range(5):
        scores = vectors["image"][i] @ vectors["text"][:5].T
        best = max(scores[j] for j in range(5) if i // 2 == j // 2)
        expected.append(1 / (1 + np.sum(scores > best)))
    assert found["image_to_text"] == pytest.approx(np.mean(expected))
    assert own_data.ranks({"image": np.eye(6), "text": np.eye(6)}, held_out)["text_to_image"] == 1.0
    # Where all score alike, every place is as likely: two right ones of five, and one of five.
    alike = own_data.ranks({"image": np.ones((6, 2)), "text": np.ones((6, 2))}, held_out)
    two = sum((5 - place) / 10 / place for place in (1, 2, 3, 4))
    one = sum(1 / 5 / place for place in (1, 2, 3, 4, 5))
    assert alike["image_to_text"] == pytest.approx((4 * two + one) / 5)


def test_own_data_arms_take_the_same_compute(own_data, root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own.write(tmp_path / "data", "stems", own.records(count=40))
    made = config.load_module(root / "configs" / "own_data.py").get_config(str(tmp_path / "data"))
    whole = dataclasses.replace(made, evaluators={}, total_steps=300)
    pairs = own_data.by_pair(whole)
    assert set(pairs.tasks) == {"image_text", "image_audio", "text_audio", "masked"}
    assert pairs.total_steps == 400  # of three steps two contrast three; of four three contrast two
    assert set(pairs.tasks["image_text"].augment) == {"image", "text"}
    assert set(own_data.stems(whole).model.stems) == {"image", "audio"}
    assert "text" in own_data.varied(whole).tasks["contrast"].augment
    assert "text" not in own_data.varied(whole).tasks["masked"].augment  # it is predicted
    rows = 2 * whole.tasks["contrast"].batch_size + whole.tasks["masked"].batch_size
    assert own_data.for_visits(whole, 10 * rows).total_steps == 30


def test_augmentations_are_timed_beside_plain_encoding(root):
    done = subprocess.run(
        [sys.executable, "benchmarks/augment.py", "--rounds", "1"],
        cwd=root, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["what"].partition(",")[0] for row in rows} == {
        "Pictures()", "all of Pictures", "Sounds()", "Texts()"
    }  # fmt: skip
    assert all(row["visit"] > 0 and row["encode"] > 0 for row in rows)


@pytest.mark.slow
def test_quantisers_take_turns_on_the_same_batches(root, tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/tokenizers.py", "--steps", "12", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--arms", "FSQ", "ProductVQ", "--out", str(out)],
        cwd=root, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    committed = json.loads((root / "mmjax" / "tokenizers" / "measured.json").read_text())
    assert set(found) == set(committed)
    for name in ("FSQ", "ProductVQ"):
        row, before = found["tokenizers"][name], committed["tokenizers"][name]
        for key in ("class", "config", "codes", "ids", "parameters"):
            assert row[key] == before[key], key
        assert min(row[key] for key in row if key.endswith("_per_second")) > 0
        assert row["step_bytes"] > 4 * row["parameters"]
