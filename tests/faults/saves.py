"""A process that saves and retires checkpoints of a small state, to be killed at any system call.

    python saves.py FOLDER        and then on standard input a line for each child to fork

Each line names a workdir; the child stops itself, so that a tracer can attach, then saves steps
1, 2, ... with `keep` of two, and prints `saved STEP` when the save of a step is complete.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint  # noqa: F401  (imported once, before children are forked)
from etils import epath

from mmjax import checkpoint
from mmjax.step import TrainState

STEPS = 4
MANIFEST = {
    **{"journal": [], "cursors": {}, "streams": [], "vocabulary": {}, "layer_plan": []},
    **{"tokenizers": {}, "identity": {}, "mesh": {}, "time": "", "parameters": {}},
}


def state(step: int) -> TrainState:
    """Arrays that tell which step they are of."""
    params = {"a": np.full((64, 33), step, np.float32), "b": {"c": np.arange(7) + step}}
    return TrainState(np.int32(step), params, {"load": params["a"][0]}, {"mu": params}, {})


def like() -> dict:
    """What `restore` is asked for."""
    import jax

    whole = state(0)
    trees = {name: getattr(whole, name) for name in checkpoint.ITEMS}
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trees)


def save_all(workdir: str) -> None:
    """Saves all steps, each complete before the next."""
    settings = checkpoint.Checkpointing(keep=2)
    checkpoint.recover(Path(workdir) / "checkpoints")
    saver = checkpoint.Saver(epath.Path(workdir), settings)
    for step in range(1, STEPS + 1):
        saver.save(state(step), {**MANIFEST, "step": step})
        saver.wait()
        os.write(1, f"saved {step}\n".encode())  # in one call, which a kill cannot divide
    saver.close()


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child:
            print(f"child {child}", flush=True)
            _, status = os.waitpid(child, 0)
            print(f"ended {status}", flush=True)
            continue
        os.kill(os.getpid(), signal.SIGSTOP)
        save_all(line.strip())
        os._exit(0)


if __name__ == "__main__":
    main()
