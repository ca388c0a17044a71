"""The process that compiles for another one: what it leaves, and what happens when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import mini
import numpy as np
import pytest

from mmjax.run import executables, program

SLEEP = "import time; time.sleep(600)"
READ = "import sys, cloudpickle; cloudpickle.load(sys.stdin.buffer)"
WHOLE = """
import contextlib, json, os, sys, time
from pathlib import Path
import jax
from jax import monitoring
import mini
from etils import epath
from mmjax.run import workdir as workdir_lib
from mmjax.run import executables, program
from mmjax.run import view

cache, events = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]), []
monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/", 1)[-1]))
executables.LARGE = 1000
experiment = workdir_lib.ready_modalities(mini.evaluated(), epath.Path(sys.argv[1]), main=True)
built = program.build(experiment)
counts = []
for _ in range(2):
    events.clear()
    with contextlib.ExitStack() as until:
        found = executables.compile_all(built, True, until)
        begun = time.time()
        while len(list(cache.glob("jit_run-*-cache"))) < 3 and time.time() < begun + 120:
            time.sleep(0.1)  # two embeddings and the losses of a task
    assert sorted(found) == [("image_text", "default"), ("text", "default")]
    counts.append([events.count("cache_hits"), events.count("cache_misses")])
    jax.clear_caches()
state = built.init_state()
events.clear()
scores = {}
for evaluator in experiment.evaluators.values():
    scores |= evaluator.run(view.View(
        program=built, params=state.params, model_state=state.model_state, extra=state.extra,
        step=0, split="val",
    ))
assert 0 < scores["text/loss"] < 100, scores
counts.append([events.count("cache_hits"), len(list(cache.glob("jit_run-*-cache")))])
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    from etils import epath

    from mmjax.run import workdir as workdir_lib

    folder = epath.Path(tmp_path_factory.mktemp("modalities"))
    return program.build(workdir_lib.ready_modalities(mini.get_config(), folder, main=True))


def apart(built):
    with contextlib.ExitStack() as until:
        return executables._compile_apart(built, True, until)


@pytest.mark.ci
def test_a_long_run_reads_what_another_process_compiled(tmp_path):
    tests, cache = Path(__file__).parent, tmp_path / "cache"
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "MALLOC_ARENA_MAX")}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    command = [sys.executable, "-c", WHOLE, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    steps, again, (hits, runs) = json.loads(done.stdout.splitlines()[-1])
    assert steps == again == [2, 0]
    assert runs == 3  # nothing of evaluation was left to compile
    assert hits >= 3
    said = [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("compiled")]
    both = ["compiled image_text/default", "compiled text/default"]
    assert sorted(said[:2]) == both  # told by the other process, and not again by this one
    assert sorted(said[2:]) == both  # the second time this one reads the cache by itself
    assert len(list(cache.glob("mmjax-*"))) == 1
    assert len(list(cache.glob("jit_step-*-cache"))) == 2


def test_a_process_that_fails_leaves_the_work_to_this_one(built, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(executables, "_cache", lambda: str(tmp_path))
    monkeypatch.setattr(executables, "CHILD", "raise SystemExit('no room')")
    assert not apart(built)
    assert not list(tmp_path.iterdir())
    said = capfd.readouterr().err
    assert "ended with code 1: no room; compiling here" in said


def test_a_cache_that_takes_no_mark_does_not_end_the_run(built, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(executables, "_cache", lambda: str(tmp_path / "file" / "cache"))
    text = "print('compiled')"
    monkeypatch.setattr(executables, "CHILD", text)
    assert apart(built)


def test_the_other_process_finds_the_modules_of_this_one(built, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(executables, "_cache", lambda: str(tmp_path / "cache"))
    text = "import only_here"
    monkeypatch.setattr(executables, "CHILD", text)
    assert apart(built)
    assert len(list((tmp_path / "cache").glob("mmjax-*"))) == 1


def test_an_interrupt_ends_the_other_process_too(built, tmp_path, monkeypatch):
    started = tmp_path / "started"
    program_text = f"{READ}; open({str(started)!r}, 'w').close()"
    monkeypatch.setattr(executables, "_cache", lambda: str(tmp_path))
    monkeypatch.setattr(
        executables, "CHILD", f"{program_text}; print('compiled', flush=True); {SLEEP}"
    )

    def interrupt(text, active):
        raise KeyboardInterrupt

    monkeypatch.setattr(executables.console, "say", interrupt)
    with pytest.raises(KeyboardInterrupt):
        apart(built)  # waits for the process, which was killed
    assert started.exists()


def test_what_is_rehearsed_is_compiled_and_not_computed():
    ran = []

    def run(x, y):
        jax.debug.callback(ran.append, x[0])
        return {"sum": x + y}

    rehearsed = executables._only_compiled(run)
    for size in (3, 3, 4):
        out = rehearsed(np.ones(size, np.float32), jax.ShapeDtypeStruct((size,), np.float32))
        np.testing.assert_array_equal(out["sum"], np.zeros(size, np.float32))
    jax.effects_barrier()
    assert not ran


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")
def test_the_other_process_steps_back():
    ask = "print(os.nice(0), open('/proc/self/autogroup').read())"
    text = f"import os; from mmjax.run import executables; executables._step_back(); {ask}"
    if not Path("/proc/self/autogroup").exists():
        text = text.replace(ask, "print(os.nice(0), 'nice 19')")
    command = [sys.executable, "-c", text]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, start_new_session=True
    )
    assert done.stdout.split()[0] == "19"
    assert done.stdout.strip().endswith("nice 19")


def test_the_other_process_ends_with_this_one():
    # What the other one does while it waits; all else of it is in the test above.
    text = "from mmjax.run import executables; executables._end_with_input()"
    command = [sys.executable, "-c", text]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(5)
        other.stdin.close()
        assert other.wait(60) == 1


def test_only_large_models_on_all_cpus_compile_apart(built, tmp_path, monkeypatch):
    monkeypatch.setattr(executables, "_cache", lambda: str(tmp_path))
    assert not executables._is_worth_it(built)  # some thousand parameters
    monkeypatch.setattr(executables, "LARGE", 1000)
    assert executables._is_worth_it(built)
    monkeypatch.setattr(executables.jax, "process_count", lambda: 2)
    assert not executables._is_worth_it(built)
    monkeypatch.setattr(executables.jax, "process_count", lambda: 1)
    monkeypatch.setattr(executables, "_cache", str)
    assert not executables._is_worth_it(built)  # nowhere to leave them


def test_the_mark_is_of_the_steps_and_not_of_the_config_alone(built, tmp_path, monkeypatch):
    monkeypatch.setattr(executables, "_cache", lambda: str(tmp_path))
    monkeypatch.setattr(executables, "CHILD", f"print({executables.READY!r})")
    assert executables._marked(built) is None
    assert apart(built)
    found = executables._marked(built)
    assert sorted(found) == [("image_text", "default"), ("text", "default")]
    # The same config, after a change of the code of a layer.
    text = {pair: one.as_text() + "// changed" for pair, one in found.items()}
    changed = lambda built, pair: types.SimpleNamespace(as_text=lambda: text[pair])
    monkeypatch.setattr(executables, "_lowered", changed)
    assert executables._marked(built) is None
