"""Commands as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys

import mmjax


def run(*args: str, cwd=None, timeout=120, **environment) -> subprocess.CompletedProcess:
    """`mmjax ARGS` in a process of its own."""
    paths = [os.path.dirname(os.path.dirname(mmjax.__file__)), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    command = [sys.executable, "-m", "mmjax", *args]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=cwd, timeout=timeout
    )
