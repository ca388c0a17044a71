"""How much memory a piece of code takes at most, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

# By the kernel's mark of this process, not by `getrusage`: that of a child starts where the parent
# was, so a large parent would hide what the child takes.
PROGRAM = """
import time
def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))
{before}
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the mark starts anew
start, began = memory("VmRSS"), time.monotonic()
{code}
print("peak", memory("VmHWM") - start, time.monotonic() - began)
"""


def of(before: str, code: str) -> tuple[float, float]:
    """Megabytes and seconds that `code` takes after `before`, which imports and warms up."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before, code=code)],
        capture_output=True, text=True, timeout=120, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    word, megabytes, seconds = done.stdout.split()[-3:]
    assert word == "peak"
    return float(megabytes), float(seconds)
