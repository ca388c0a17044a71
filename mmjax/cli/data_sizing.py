"""What `mmjax data check` proposes for a config, and what that costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmjax.cli.data_reading import Reading
from mmjax.data.proposal import Proposal
from mmjax.experiment import Experiment
from mmjax.modalities.modality import Modality

__all__ = ["applied", "costs", "lines"]

SIDE = 1024  # of the matrices whose product is timed


def lines(experiment: Experiment, tasks: list[str], made: Proposal) -> Iterator[str]:
    """A line for each modality and for the run: what is proposed, what is set, and why."""
    for name, choice in made.modalities.items():
        modality = experiment.modalities[name]
        now = _tokens(modality, name)
        then = _tokens(_with(modality, choice.fields), name)
        values = ", ".join(_values(modality, choice.fields))
        yield f"{name}: {values}: {then} tokens a sample, now {now}; {choice.why}"
    fields = made.run.fields
    sizes = ", ".join(f"{n} {experiment.tasks[n].batch_size}" for n in tasks)
    yield (
        f"run: batch_size={fields['batch_size']} (now {sizes}), total_steps="
        f"{fields['total_steps']} (now {experiment.total_steps}); {made.run.why}"
    )


def applied(experiment: Experiment, made: Proposal) -> Experiment:
    """The experiment with modalities as proposed."""
    fitting = {n: _with(experiment.modalities[n], c.fields) for n, c in made.modalities.items()}
    return dataclasses.replace(experiment, modalities={**experiment.modalities, **fitting})


def costs(
    experiment: Experiment, tasks: list[str], made: Proposal, reading: Reading
) -> Iterator[str]:
    """FLOPs of a step of each task as it is and as proposed, and the time that reading took."""
    per_record = 1e3 * reading.seconds / max(reading.read, 1)
    yield f"reading and encoding takes {per_record:.2g} ms of processor time a record"
    from mmjax.plan import flops

    rate = _rate()
    fitting = applied(experiment, made)
    for task in tasks:
        for variant in experiment.tasks[task].variant_weights():
            now, then = (
                flops.step_flops(e, task, variant, e.vocabulary()) for e in (experiment, fitting)
            )
            if now is None or then is None:
                continue
            other = f", {then / 1e12:.3g} with the proposed modalities" if then != now else ""
            seconds = " and ".join(f"{x / rate:.2g} s" for x in dict.fromkeys((now, then)))
            yield (
                f"task {task}: a step of {now / 1e12:.3g} TFLOP{other}: {seconds} at the"
                f" {rate / 1e9:.0f} GFLOP/s at which this machine has just multiplied matrices"
            )


def _with(modality: Modality, fields: Mapping[str, Any]) -> Modality:
    """The modality with values of its own fields, and of those of its tokenizer."""
    tokenizer = getattr(modality, "tokenizer", None)
    inner = {k: v for k, v in fields.items() if tokenizer is not None and hasattr(tokenizer, k)}
    own = {k: v for k, v in fields.items() if hasattr(modality, k)}
    if inner:
        own["tokenizer"] = dataclasses.replace(tokenizer, **inner)  # pyright: ignore
    return dataclasses.replace(modality, **own)


def _values(modality: Modality, fields: Mapping[str, Any]) -> Iterator[str]:
    """`field=proposed (now value)`, or without what is set where that is the same."""
    for key, value in fields.items():
        owner = modality if hasattr(modality, key) else getattr(modality, "tokenizer", None)
        now = getattr(owner, key, None)
        yield f"{key}={value}" + (f" (now {now})" if now not in (None, value) else "")


def _tokens(modality: Modality, name: str) -> int:
    return modality.spec(name).max_tokens


def _rate() -> float:
    """FLOP/s of a product of matrices by NumPy, the best of three."""
    a = np.ones((SIDE, SIDE), np.float32)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        np.matmul(a, a)
        best = min(best, time.perf_counter() - began)
    return 2.0 * SIDE**3 / best
