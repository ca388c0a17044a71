"""CPU time of encoding one value, for each modality of the conformance table.

    python benchmarks/modalities.py [--rounds 9] [--out FILE]

Modalities take turns, so that a busy moment falls on all of them. A round is as many calls of
`encode` as take some milliseconds; the median over rounds, in microseconds of this thread, is told
with the most tokens of a piece. A worker of 64 rows a step has no more than 1/64 of a step for one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CALLS = 50  # of `encode` in a round, over the values of a row in turn


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "conformance")]
    from test_modalities import ROWS, ready

    with tempfile.TemporaryDirectory() as folder:
        rows = {n: ready(row, Path(folder) / str(i)) for i, (n, row) in enumerate(ROWS.items())}
        found: dict[str, list[float]] = {name: [] for name in rows}
        for number in range(args.rounds + 1):
            for name, row in rows.items():
                spent = microseconds(row.modality.encode, row.values)
                if number:  # the first makes tables and traces
                    found[name].append(spent)
    result = {
        name: {"us": statistics.median(times), "tokens": rows[name].modality.spec(name).max_tokens}
        for name, times in found.items()
    }
    for name, row in result.items():
        print(f"{name:28} {row['us']:8.1f} us {row['tokens']:6d} tokens")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def microseconds(function, values) -> float:
    """Of this thread, a call."""
    began = time.thread_time()
    for i in range(CALLS):
        function(values[i % len(values)])
    return 1e6 * (time.thread_time() - began) / CALLS


if __name__ == "__main__":
    main()
