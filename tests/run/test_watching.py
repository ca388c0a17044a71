"""How a run is followed: where its time went, its state, traces and trackers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mmjax import config
from mmjax.config.error import ConfigError
from mmjax.experiment import Logging
from mmjax.run import alarms, goodput, info, lock, trackers
from mmjax.run.profiling import AT_ONCE, Profiler

# ------------------------------------------------------------------------------ goodput


def rows(begin: float, *steps: tuple[int, float], **phases: float) -> list[dict]:
    """Rows of a start: (step, seconds in steps so far) after phases of a fixed length."""
    made = []
    for step, seconds in steps:
        spent = {"time/step": seconds, **{f"time/{name}": s for name, s in phases.items()}}
        made.append({"step": step, "time": begin + sum(spent.values()), **spent})
    return made


def test_the_parts_of_one_start_add_up_to_its_time():
    found = goodput.budget(rows(1000.0, (10, 5.0), (20, 60.0), compile=30.0, input=10.0))
    assert found["productive"] == 60.0
    assert found["compile"] == 30.0
    assert found["data wait"] == 10.0
    assert found["lost to restarts"] == 0.0
    assert sum(found.values()) == pytest.approx(100.0)
    assert goodput.goodput(found) == pytest.approx(0.6)


def test_what_lies_between_starts_was_lost():
    first = rows(0.0, (10, 50.0), (20, 90.0), compile=10.0)  # its last row is at 100
    later = rows(160.0, (30, 100.0), compile=20.0)  # until 280
    found = goodput.budget(first + later)
    assert found["lost to restarts"] == pytest.approx(60.0)
    assert found["productive"] == 190.0
    assert sum(found.values()) == pytest.approx(280.0)


def test_clocks_may_drift_a_little_and_rows_without_times_count_for_nothing():
    drifting = rows(0.0, (10, 10.0), (20, 20.0), (30, 30.0), compile=1.0)
    drifting[1]["time"] += 1.0
    assert goodput.budget(drifting)["lost to restarts"] == 0.0
    assert goodput.budget([{"step": 1, "time": 5.0, "train/loss": 1.0}]) == {}
    assert goodput.goodput({}) == 0.0


# -------------------------------------------------------------------------------- state


def run_at(folder, step: int, holder: str = "", total: int = 100):
    """A workdir whose rows reach a step."""
    document = {"class": "Experiment", "total_steps": total}
    text = {"config": document, "fingerprint": config.fingerprint(document), "format": 2}
    (folder / "config.json").write_text(json.dumps(text))
    made = rows(time.time() - 50, (step, 40.0), compile=10.0)
    made[-1]["throughput/steps_per_second"] = 2.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (folder / "lock").write_text(holder)
    return info.progress(folder, {"starts": [{"processes": 4, "devices": "32 x TPU v5e"}]}, [step])


def test_the_state_of_a_run(tmp_path):
    me = {"pid": os.getpid(), "host": socket.gethostname(), "time": "now"}
    found = run_at(tmp_path, 40, json.dumps(me))
    assert found["state"] == f"running (pid {os.getpid()} on {me['host']} since now)"
    assert found["progress"] == "step 40 of 100"
    assert found["steps_per_second"] == 2.0
    assert found["remaining"] == "30.0 s"
    assert found["goodput"].startswith("80.0% of 50")
    assert found["last_checkpoint"].startswith("step 40, ")
    assert found["hosts"] == "4 processes, 32 x TPU v5e"
    assert run_at(tmp_path, 40)["state"] == "stopped; the same command goes on"
    assert run_at(tmp_path, 100)["state"] == "done"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    found = run_at(tmp_path, 40, json.dumps({**me, "pid": gone.pid}))
    assert found["state"].startswith("killed (it was pid")
    assert "remaining" not in found
    elsewhere = {"pid": 7, "host": "another", "time": "then"}
    assert run_at(tmp_path, 40, json.dumps(elsewhere))["state"].startswith("running (pid 7 on anot")


def test_looking_at_a_lock_leaves_it_alone(tmp_path):
    with lock.lock(tmp_path):
        assert lock.holder(tmp_path)["pid"] == os.getpid()
        before = (tmp_path / "lock").read_bytes()
        lock.holder(tmp_path)
        assert (tmp_path / "lock").read_bytes() == before
    assert lock.holder(tmp_path) == {}
    assert lock.holder(tmp_path / "nothing") == {}
    (tmp_path / "lock").write_bytes(b"\xff{")
    assert lock.holder(tmp_path).get("pid") is None


# ------------------------------------------------------------------------------- traces


def traced(folder, steps: range, signal_at: int = -1) -> list[str]:
    """Folders of traces after 24 small steps."""
    profiler, step = Profiler(folder, steps), jax.jit(lambda x: x + 1)
    state = jnp.zeros(())
    with profiler.listening():
        for i in range(24):
            if i == signal_at:
                os.kill(os.getpid(), signal.SIGUSR1)
            profiler.before(i, state)
            state = step(state)
    made = sorted(folder.glob("profile/*"), key=lambda p: int(p.name))
    assert all(list(p.rglob("*.xplane.pb")) for p in made)
    return [p.name for p in made]


def test_the_steps_of_a_span_are_traced(tmp_path, capsys):
    assert traced(tmp_path, range(3, 6)) == ["3"]
    assert "trace of the steps from 3 on" in capsys.readouterr().err
    assert AT_ONCE == 10


def test_a_signal_traces_the_next_steps_and_the_end_of_a_run_ends_a_trace(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    assert traced(tmp_path, range(0), signal_at=20) == ["20"]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_resume_within_a_span_traces_the_rest(tmp_path):
    profiler = Profiler(tmp_path, range(3, 9))
    profiler.before(7, jnp.zeros(()))
    profiler.close()
    assert [p.name for p in (tmp_path / "profile").iterdir()] == ["7"]


@pytest.mark.parametrize("text", ["10", "20:10", "10:10", "a:b", "-1:5", "1:2:3", "10:", ":10"])
def test_a_span_that_makes_no_sense_is_told(text):
    with pytest.raises(ValueError, match=re.escape(f"profile={text!r} must be FIRST:LAST")):
        Logging(profile=text)


# ----------------------------------------------------------------------------- trackers


class Service(types.ModuleType):
    """A package of a tracker that keeps what it is given, and can fail."""

    def __init__(self, name: str, fails: bool = False):
        super().__init__(name)
        self.calls, self.fails = [], fails

    def init(self, **fields):
        self.calls.append(("init", fields))

    def log(self, metrics, step):
        if self.fails:
            raise OSError("no route to host")
        self.calls.append(("log", step, metrics))

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_tracker_gets_every_row_and_resumes_under_its_name(kind, monkeypatch, tmp_path):
    service = Service(kind)
    monkeypatch.setitem(sys.modules, kind, service)
    for _ in range(2):
        tracker = trackers.Tracker(kind, "", "run", tmp_path, {"seed": 3})
        tracker.write(10, {"train/loss": 2.0})
        tracker.close()
    first, again = (c[1] for c in service.calls if c[0] == "init")
    assert first == again
    assert first["project"] == "mmjax"
    assert first["resume"] == "allow"
    assert first["config"]["seed"] == 3
    assert service.calls.count(("log", 10, {"train/loss": 2.0})) == 2
    other = trackers.Tracker(kind, "", "run", tmp_path / "b", {})
    other.close()
    assert service.calls[-2][1]["name"] != first["name"]


def test_a_service_that_fails_does_not_end_the_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "trackio", Service("trackio", fails=True))
    tracker = trackers.Tracker("trackio", "", "run", tmp_path, {})
    for step in range(3):
        tracker.write(step, {"train/loss": 2.0})
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("trackio is left out from here on (OSError: no route to host)") == 1


def test_a_missing_package_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"logging.tracker='wandb'.*pip install wandb"):
        trackers.Tracker("wandb", "", "run", tmp_path, {})
    with pytest.raises(ValueError, match="tracker='mlflow' must be 'wandb', 'trackio'"):
        Logging(tracker="mlflow")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- alarms


def test_alarms_name_a_remedy_once_and_again_after_a_pause():
    slow = {"time/step": 50.0, "time/input": 40.0, "time/save": 20.0, "data/wait_fraction": 0.4}
    fine = {"time/step": 500.0, "time/save": 20.0, "data/wait_fraction": 0.0}
    given = alarms.Alarms()
    save, wait = given.lines(slow)
    assert save.startswith("warning: 18% of the time went into saving; raise checkpoint.every")
    assert wait.startswith("warning: 40% of the time went into waiting for data; raise data.num_")
    assert given.lines(slow) == []
    assert given.lines(fine) == []
    assert len(given.lines(slow)) == 2


def test_a_run_that_has_just_begun_gives_no_alarm():
    assert alarms.Alarms().lines({"time/step": 1.0, "time/evaluate": 30.0}) == []


def test_skipped_steps_give_an_alarm():
    (line,) = alarms.Alarms().lines({"train/text/skipped": 0.5, "train/image/skipped": 0.0})
    assert "50% of the steps of a task were skipped" in line


def test_the_pages_that_alarms_name_exist():
    docs = Path(__file__).parent.parent.parent / "docs"
    for _, page in alarms.REMEDIES.values():
        name, _, anchor = page.partition("#")
        heads = re.findall(r"^#+ (.*)$", (docs / name).read_text(), re.M)
        assert not anchor or anchor in [head.lower().replace(" ", "-") for head in heads]
