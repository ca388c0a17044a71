"""A process killed at every kind of system call of a save and of a retirement.

A tracer kills the child when a thread of it makes the n-th call of a kind. What is then on disk is
looked at as it is, and after the next start.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import saves
import small

from mmjax import checkpoint

CALLS = {  # kind of call -> the numbers at which to kill
    "rename,renameat,renameat2": range(1, 13),
    "unlink,unlinkat": range(1, 17),
    "rmdir": range(1, 5),
    "mkdir,mkdirat": range(1, 9),
    "fsync,fdatasync": range(1, 25),
    "pwrite64,write": range(4, 60, 7),
}
POINTS = [(call, n) for call, numbers in CALLS.items() for n in numbers]

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace, which .ci/run installs"
)


@pytest.fixture(scope="module")
def parent():
    """A process that has imported everything and forks a child for each point."""
    root = Path(__file__).resolve().parents[2]
    flags = "--xla_force_host_platform_device_count=1"
    env = {**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, saves.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        yield process
        process.stdin.close()


def killed(parent, workdir: Path, call: str, number: int) -> tuple[list[int], bool]:
    """Steps whose saves were complete, and whether the child was killed at that call."""
    parent.stdin.write(f"{workdir}\n")
    parent.stdin.flush()
    child = int(parent.stdout.readline().removeprefix("child "))
    stat = Path(f"/proc/{child}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":  # it stops itself
        time.sleep(0.01)
    trace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}"]
    inject = ["-e", f"inject={call}:signal=KILL:when={number}", "-p", str(child)]
    with subprocess.Popen([*trace, *inject], stderr=subprocess.DEVNULL) as tracer:
        status = Path(f"/proc/{child}/status")
        while not re.search(rf"TracerPid:\t{tracer.pid}\n", status.read_text()):
            assert tracer.poll() is None, "strace cannot attach"
            time.sleep(0.01)
        os.kill(child, signal.SIGCONT)
        done = []
        while not (line := parent.stdout.readline()).startswith("ended"):
            assert line, "the forking process ended"
            done.append(int(line.removeprefix("saved ")))
        tracer.wait()
    return done, os.WIFSIGNALED(int(line.split()[1]))


def check(workdir: Path, done: list[int]) -> None:
    """What is listed is whole, no save that was complete is lost, and the next start goes on."""
    folder = workdir / "checkpoints"
    for _ in ("as the kill left it", "after the next start"):
        listed = checkpoint.steps(folder)
        assert [checkpoint.damaged(workdir, step) for step in listed] == [[]] * len(listed)
        assert not done or listed[-1] >= done[-1], (listed, done)
        checkpoint.recover(folder)
    assert sorted(p.name for p in folder.iterdir() if p.name != "mine") == sorted(map(str, listed))
    assert (folder / "mine" / "file").read_text() == "mine"
    if listed:
        found = checkpoint.restore(workdir, listed[-1], saves.like())
        for name, tree in found.items():
            expected = getattr(saves.state(listed[-1]), name)
            np.testing.assert_equal(tree, expected)
    assert not (workdir / "quarantine").exists()


def run(parent, tmp_path: Path, points) -> int:
    """Kills a child at each point; how many died there."""
    count = 0
    for i, (call, number) in enumerate(points):
        workdir = tmp_path / str(i)
        (workdir / "checkpoints" / "mine").mkdir(parents=True)
        (workdir / "checkpoints" / "mine" / "file").write_text("mine")
        done, was_killed = killed(parent, workdir, call, number)
        try:
            check(workdir, done)
        except BaseException as error:
            error.add_note(f"killed at {call}, number {number}, after the saves of {done}")
            raise
        count += was_killed
    return count


@pytest.mark.ci
@pytest.mark.parametrize("part", small.in_turns(range(2), [0]))
@pytest.mark.fault("a kill at each of 60 system calls of a save or a retirement", "no step is lost")
def test_a_kill_in_a_save_loses_no_step(parent, tmp_path, part):
    count = run(parent, tmp_path, POINTS[part::2])
    assert count >= 30, "fewer kills than are claimed: the calls of a save have changed"
