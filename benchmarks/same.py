"""Whether a change of structure changed anything: losses and a resumed run against another commit.

    python benchmarks/same.py --commit COMMIT [--config configs/quickstart.py:tiny]

Trains the config here and in a worktree of the other commit: losses of all steps must be equal bit
for bit. Then a workdir that was begun there goes on here: the steps after must be equal, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IGNORED = ("throughput/", "data/wait_fraction", "memory/")


def train(tree: Path, config: str, workdir: Path, *args: str) -> None:
    """`mmjax train` of a source tree, on one device."""
    env = {**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "mmjax", "train", config, "--workdir", str(workdir)]
    subprocess.run([*command, "--logging.log_every", "1", *args], cwd=tree, env=env, check=True)


def rows(workdir: Path) -> dict[int, dict[str, float]]:
    """Metrics of the steps, without those that time changes."""
    found: dict[int, dict[str, float]] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        kept = {k: v for k, v in row.items() if k != "time" and not k.startswith(IGNORED)}
        found.setdefault(row["step"], {}).update(kept)
    return found


def differences(one: dict, two: dict) -> list[str]:
    """Steps and metrics that are not equal."""
    told = [f"steps {sorted(one)} and {sorted(two)}"] if one.keys() != two.keys() else []
    for step in one.keys() & two.keys():
        names = one[step].keys() | two[step].keys()
        told += [
            f"step {step} {name}: {one[step].get(name)} and {two[step].get(name)}"
            for name in sorted(names)
            if one[step].get(name) != two[step].get(name)
        ]
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", required=True, help="the other one")
    parser.add_argument("--config", default="configs/quickstart.py:tiny")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = folder / "other"
        worktree = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*worktree, "add", "-q", "--detach", other, options.commit], check=True)
        try:
            train(ROOT, options.config, folder / "here")
            train(other, options.config, folder / "there", "--checkpoint.every", "4")
            told = differences(rows(folder / "there"), rows(folder / "here"))
            last = max(int(p.name) for p in (folder / "there" / "checkpoints").iterdir())
            shutil.rmtree(folder / "there" / "checkpoints" / str(last))
            before = rows(folder / "there")
            train(ROOT, options.config, folder / "there", "--checkpoint.every", "4")
            told += [f"resumed: {line}" for line in differences(before, rows(folder / "there"))]
        finally:
            subprocess.run([*worktree, "remove", "--force", other], check=True)
    print(
        "\n".join(told) or f"the same as {options.commit}: every metric of every step, resumed too"
    )
    return 3 * bool(told)


if __name__ == "__main__":
    sys.exit(main())
