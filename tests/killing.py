"""Commands that tokenize, killed at random with all their processes, and started again."""

from __future__ import annotations

import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import toy_set

import mmjax

CONFIG = Path(toy_set.__file__)


def command(raw: Path, codes: str, out: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    """`mmjax tokenize` of the toy set, and its environment."""
    paths = [str(CONFIG.parent), str(Path(mmjax.__file__).parent.parent)]
    env = {"RAW": str(raw), "CODES": codes, "PYTHONPATH": os.pathsep.join(paths)}
    args = [sys.executable, "-m", "mmjax", "tokenize", str(CONFIG), "--out", str(out), *more]
    return args, {**os.environ, **env}


def at_random(
    of: tuple[list[str], dict[str, str]], out: Path, times: int, seed: int, most: float = 1.5
) -> None:
    """Starts a command so often, each time killed up to `most` seconds after its job was known,
    then lets it end."""
    rng, (args, env) = random.Random(seed), of
    for _ in range(times):
        with subprocess.Popen(
            args, env=env, start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            while process.poll() is None and not (out / "tokens" / "job.json").exists():
                time.sleep(0.02)
            time.sleep(rng.uniform(0, most))
            os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def same_files(a: Path, b: Path) -> bool:
    """Whether two sets of tokens are equal, byte for byte."""

    def names(folder: Path) -> list[str]:
        found = (p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
        return sorted(str(p.relative_to(folder)) for p in found)

    assert names(a) == names(b)
    return all(filecmp.cmp(a / name, b / name, shallow=False) for name in names(a))
