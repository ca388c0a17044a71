"""What digests and hashes of checkpoints cost beside the steps of the same run.

    python benchmarks/verify.py [--config configs/quickstart.py:raw] [--steps 201] [--out FILE]

The config trains with a save every 100 steps. CPU time of the code that digests the arrays and
hashes the files, in the threads in which it runs, is compared with the CPU time (user + system) of
the process while steps run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERY, LIMIT = 100, 0.03


def measure(target: str, steps: int) -> dict[str, float]:
    """Seconds of verification and of steps."""
    import mmjax
    from mmjax import checkpoint, config
    from mmjax import train as train_lib

    experiment = config.load(target)
    experiment = dataclasses.replace(
        experiment,
        total_steps=steps,
        evaluators={},
        checkpoint=checkpoint.Checkpointing(every=EVERY),
    )
    seconds = {}
    run = train_lib._Loop.run

    def timed(loop) -> None:
        before = time.process_time()
        run(loop)
        loop.saver.wait()
        seconds["steps"] = time.process_time() - before - loop.saver.verify_seconds
        seconds["verify"] = loop.saver.verify_seconds
        seconds["saves"] = (steps - 1) // EVERY
        leaves = mmjax.checkpoint._leaves(loop.state)
        seconds["state_MB"] = sum(x.nbytes for x in leaves) / 1e6

    train_lib._Loop.run = timed
    with tempfile.TemporaryDirectory() as folder:
        mmjax.train(experiment, folder)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=f"{ROOT}/configs/quickstart.py:raw")
    parser.add_argument("--steps", type=int, default=201)
    parser.add_argument("--limit", type=float, default=LIMIT, help="exit 3 above this ratio")
    parser.add_argument("--out", metavar="FILE")
    options = parser.parse_args()
    found = measure(options.config, options.steps)
    per_save = found["verify"] / found["saves"]
    per_steps = found["steps"] * EVERY / options.steps
    ratio = per_save / per_steps
    print(
        f"a state of {found['state_MB']:.0f} MB: verification {per_save:.2f} CPU seconds a save,"
        f" {EVERY} steps {per_steps:.1f}: {100 * ratio:.2f} % (at most {100 * options.limit:.0f} %)"
    )
    if options.out:
        about = {"machine": platform.processor(), "cores": os.cpu_count(), "ratio": ratio}
        Path(options.out).write_text(json.dumps({**found, **about}, indent=2) + "\n")
    return 3 * (ratio > options.limit)


if __name__ == "__main__":
    sys.exit(main())
