"""Compile time of a training step by number of layers: a scanned stack compiles one of each kind.

    python benchmarks/layers.py [--layers 4 16] [--experts 8] [--rounds 3]

The step of a masked objective, forward, backward and AdamW, is traced, lowered and compiled anew
each time, interleaved; the JSON line holds medians of CPU seconds and their ratio to the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import small

from mmjax.models import MoE
from mmjax.objectives import MaskedTokens
from mmjax.optim import AdamW


def seconds(layers: int, experts: int) -> float:
    """CPU seconds of one compilation."""
    objective = MaskedTokens()
    model = small.config(
        encoder_layers=layers, decoder_layers=layers,
        moe=MoE(num_experts=experts, width=32) if experts else None,
    )  # fmt: skip
    parts, tx, shardings, state = small.setup(model, [objective], optimizer=AdamW())
    step, batch = small.train_step(model, parts, tx, objective, shardings), small.masked_batch()
    jax.clear_caches()
    begin = time.process_time()
    step.lower(state, batch).compile()
    return time.process_time() - begin


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="+", default=(4, 16), help="of each lane")
    parser.add_argument("--experts", type=int, default=8, help="0 = dense")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    found: dict[int, list[float]] = {layers: [] for layers in options.layers}
    for _ in range(options.rounds):
        for layers, times in found.items():
            times.append(seconds(layers, options.experts))
    median = {layers: statistics.median(times) for layers, times in found.items()}
    report = vars(options) | {"device": jax.devices()[0].device_kind}
    report["seconds"] = {layers: round(value, 2) for layers, value in median.items()}
    first = median[options.layers[0]]
    report["ratios"] = {layers: round(value / first, 3) for layers, value in median.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
