"""The process that compiles for another one: what it leaves, and what happens when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import mini
import pytest
from etils import epath

from mmjax.cli import cpu
from mmjax.run import program
from mmjax.run import workdir as workdir_lib

SLEEP = "import time; time.sleep(600)"
READ = "import sys, cloudpickle; cloudpickle.load(sys.stdin.buffer)"
WHOLE = """
import json, sys
from jax import monitoring
import mini
from mmjax import train
from mmjax.cli import cpu

events = []
monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/", 1)[-1]))
cpu.LARGE = 1000

def compile_first(built):
    cpu.compile_first(built)
    events.clear()

def compile_all(*arguments):
    found = original(*arguments)
    counts.append([events.count("cache_hits"), events.count("cache_misses")])
    return found

original, train.program.compile_all, counts = train.program.compile_all, compile_all, []
for name in ("first", "second"):
    train.train(mini.get_config(), f"{sys.argv[1]}/{name}", before_compile=compile_first)
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("modalities"))
    return program.build(workdir_lib.ready_modalities(mini.get_config(), folder, main=True))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A compile cache, into which models of any size are compiled first."""
    monkeypatch.setattr(cpu, "LARGE", 1000)
    before = jax.config.jax_compilation_cache_dir
    folder = tmp_path / "cache"
    folder.mkdir()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_a_run_reads_what_another_process_compiled(tmp_path):
    tests, cache = Path(__file__).parents[1], tmp_path / "cache"
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "MALLOC_ARENA_MAX")}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    command = [sys.executable, "-c", WHOLE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[2, 0], [2, 0]]
    said = [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("compiled")]
    both = ["compiled image_text/default", "compiled text/default"]
    assert sorted(said) == sorted(3 * both)  # the other process in the first run alone
    assert len(list(cache.glob("mmjax-*"))) == 1
    assert len(list(cache.glob("jit_step-*-cache"))) == 2


def test_a_process_that_fails_leaves_the_work_to_this_one(built, cache, monkeypatch, capfd):
    monkeypatch.setattr(cpu, "CHILD", "raise SystemExit('no room')")
    cpu.compile_first(built)
    assert not list(cache.glob("mmjax-*"))
    assert "ended with code 1: no room; compiling here" in capfd.readouterr().err


def test_a_cache_that_takes_no_mark_does_not_end_the_run(built, cache, monkeypatch):
    cache.rmdir()
    cache.write_text("")
    monkeypatch.setattr(cpu, "CHILD", "print('compiled')")
    cpu.compile_first(built)


def test_the_other_process_finds_the_modules_of_this_one(built, cache, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cpu, "CHILD", "import only_here")
    cpu.compile_first(built)
    assert len(list(cache.glob("mmjax-*"))) == 1


def test_an_interrupt_ends_the_other_process_too(built, cache, tmp_path, monkeypatch):
    started = tmp_path / "started"
    program_text = f"{READ}; open({str(started)!r}, 'w').close()"
    monkeypatch.setattr(cpu, "CHILD", f"{program_text}; print('compiled', flush=True); {SLEEP}")

    def interrupt(text, active):
        raise KeyboardInterrupt

    monkeypatch.setattr(cpu.console, "say", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cpu.compile_first(built)  # waits for the process, which was killed
    assert started.exists()


def test_the_other_process_ends_with_this_one():
    text = "from mmjax.cli import cpu; cpu._end_with_input()"
    command = [sys.executable, "-c", text]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(5)
        other.stdin.close()
        assert other.wait(60) == 1


@pytest.mark.parametrize("why", ["small", "processes", "devices", "no cache", "marked"])
def test_only_large_models_on_all_cpus_are_compiled_first(why, built, cache, monkeypatch):
    started = []
    monkeypatch.setattr(cpu, "_ended_well", lambda *a: not started.append(a))
    cpu.compile_first(built)
    assert len(started) == 1
    if why == "small":
        monkeypatch.setattr(cpu, "LARGE", 10**9)
    elif why == "processes":
        monkeypatch.setattr(jax, "process_count", lambda: 2)
    elif why == "devices":
        built = program.build(built.experiment, jax.devices()[:1])
    elif why == "no cache":
        jax.config.update("jax_compilation_cache_dir", None)
    if why != "marked":
        for mark in cache.glob("mmjax-*"):
            mark.unlink()
    cpu.compile_first(built)
    assert len(started) == 1


def test_the_mark_is_of_the_code_and_not_of_the_config_alone(built, monkeypatch, tmp_path):
    before = cpu._digest(built.experiment)
    assert cpu._digest(built.experiment) == before
    (tmp_path / "layer.py").write_text("changed")
    monkeypatch.setattr(cpu.mmjax, "__file__", str(tmp_path / "__init__.py"))
    assert cpu._digest(built.experiment) != before
