"""`mmjax tokenize` with two processes against the tokenizer alone.

    python benchmarks/token_shards.py TOKENIZER [--scenes 8000] [--rounds 3] [--out FILE]

TOKENIZER is a workdir of `configs/anyany/toyworld_tokenizers.py:image`. The tokenizer's own speed
is that of `Learned.encode` on pieces in memory, in one process with all cores. `mmjax tokenize`
reads the PNG files of tar shards, encodes, packs, writes, reads again and compares; its speed is
that of the scenes beyond the first shards of a run: a short and a long run differ by nothing else,
and starting takes the same time. Runs take turns; the result is the median over rounds of the ratio
inside one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHORT, EACH = 1000, 500  # scenes of the short run, of a shard
CONFIG = """
from mmjax.data.layouts import Masked
from mmjax.data.task import Task
from mmjax.data.webdataset import WebDataset
from mmjax.experiment import Experiment
from mmjax.modalities.codes import Codes
from mmjax.modalities.image import Image
from mmjax.models import Transformer
from mmjax.objectives import MaskedTokens

def of(raw):
    base = Image(size=(32, 32), patch=8)
    task = Task(
        source=WebDataset(files={{"train": raw + "/train/*.tar"}}, fields={{"image": "png"}}),
        inputs=("codes",), targets=("codes",), layout=Masked(), objective=MaskedTokens())
    codes = Codes(base=base, field="image", path={tokenizer!r})
    return Experiment(name="bench", modalities={{"codes": codes}}, model=Transformer(),
                      tasks={{"masked": task}})
"""


def tokenized(config: str, out: Path) -> float:
    """Seconds of a command with two workers."""
    args = [sys.executable, "-m", "mmjax", "tokenize", config, "--out", str(out)]
    begun = time.perf_counter()
    subprocess.run([*args, "--workers", "2"], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - begun


def alone(tokenizer: str, scenes: int) -> float:
    """Pieces a second of the tokenizer itself."""
    from mmjax.tokenizers.learned import Learned

    learned = Learned.read(Path(tokenizer) / "tokenizer")
    rng = np.random.default_rng(0)
    pieces = rng.normal(size=(scenes, *_shape(learned.spec))).astype(np.float32)
    learned.encode(pieces[:256])
    begun = time.perf_counter()
    learned.encode(pieces)
    return scenes / (time.perf_counter() - begun)


def _shape(spec) -> tuple[int, int]:
    return spec.max_tokens, spec.width


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", metavar="TOKENIZER")
    parser.add_argument("--scenes", type=int, default=8000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args()
    tokenizer = os.path.abspath(given.tokenizer)
    from mmjax.demo import toyworld_shards

    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        for name, count in (("short", SHORT), ("long", given.scenes)):
            toyworld_shards.write(top / name, count, 1, EACH)
        text = CONFIG.format(tokenizer=tokenizer)
        for name in ("short", "long"):
            text += f"def {name}():\n    return of({str(top / name)!r})\n"
        file = top / "config.py"
        file.write_text(text)
        for number in range(given.rounds):
            seconds = {n: tokenized(f"{file}:{n}", top / f"{n}{number}") for n in ("short", "long")}
            speed = (given.scenes - SHORT) / (seconds["long"] - seconds["short"])
            own = alone(tokenizer, given.scenes)
            rounds.append({"own": own, "tokenize": speed, "ratio": speed / own, "seconds": seconds})
            print(f"own {own:.0f}/s, tokenize {speed:.0f}/s, ratio {speed / own:.2f}", flush=True)
    ratio = statistics.median(r["ratio"] for r in rounds)
    result = {
        "ratio": ratio,
        "rounds": rounds,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    print(f"median ratio {ratio:.2f}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
