"""What XLA compiles the steps of a config to: cycles, kernels, collectives, large arrays.

    python benchmarks/compiled.py CONFIG [--topology v5e-16] [--task NAME] [--min-mib 64]
        [--save FOLDER] [--json] [--any.field value ...]
    python benchmarks/compiled.py --read PROGRAM.txt [--topology v5e-16] [--min-mib 64] [--json]

The first compiles for chips that are described and not here (`make setup-tpu` or `make setup-cuda`
installs the compiler; run it with that environment's python), the second reads a text that was
saved before. Nothing is run: figures are what the compiler estimates or emits, good for comparing
two programs. `share_of_peak` takes the FLOPs of the model (`mmjax plan`) over the estimated busy
time, in which kernels take the FLOPs of their cost estimates at 60 % of the peak;
`network_seconds` are bytes over the links' bandwidth, as if nothing overlapped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmjax.plan import hlo, topology
from mmjax.plan.chips import Chip

MIB = 2**20


def described(text: str, chip: Chip, min_mib: float, flops: float | None = None) -> dict[str, Any]:
    """A program as plain data; `flops` are those of the model on one device."""
    reading = hlo.read(text)
    report = dataclasses.asdict(reading)
    # An all-reduce is a scatter and a gather of the same array.
    moved = sum(c.bytes * (2 if k == "all-reduce" else 1) for k, c in reading.collectives.items())
    report["network_seconds"] = moved / chip.ici_bandwidth
    if chip.clock and reading.cycles:
        report["estimated_seconds"] = reading.estimated_seconds(chip.clock, chip.flops)
        if flops:
            report["share_of_peak"] = flops / chip.flops / report["estimated_seconds"]
    report["arrays"] = [dataclasses.asdict(a) for a in hlo.arrays(text, int(min_mib * MIB))]
    return report


def lines(report: dict[str, Any]) -> list[str]:
    """The same for a terminal."""
    out = [f"  cycles       {report['cycles']:,.0f} (estimated, without kernels)"]
    if "estimated_seconds" in report:
        share = report.get("share_of_peak")
        of = f", {100 * share:.1f} % of the peak" if share else ""
        out.append(f"  busy         {1e3 * report['estimated_seconds']:,.2f} ms (estimated){of}")
    out.append(f"  network      {1e3 * report['network_seconds']:,.2f} ms (estimated, no overlap)")
    if "temporaries" in report:
        sizes = ", ".join(f"{k} {report[k] / MIB:,.0f}" for k in ("arguments", "temporaries"))
        out.append(f"  MiB          {sizes}; compiled in {report['seconds']:.0f} s")
    if report["unknown_loops"]:
        out.append(f"  loops        {report['unknown_loops']} of unknown length, counted once")
    for name, kernel in report["kernels"].items():
        out.append(f"  kernel       {name} x {kernel['count']}, {kernel['flops'] / 1e9:,.1f} GFLOP")
    for kind, found in report["collectives"].items():
        sizes = ", ".join(f"{d} {n / MIB:,.1f}" for d, n in found["by_dtype"].items())
        out.append(f"  {kind:12} {found['count']}: {sizes} MiB")
    for array in report["arrays"]:
        shape = ",".join(map(str, array["shape"]))
        size = f"{array['bytes'] / MIB:,.0f} MiB x {array['count']}"
        out.append(f"  array        {array['dtype']}[{shape}] {size}  {array['op_name'][-60:]}")
    return out


def compiled(options: argparse.Namespace, fields: list[str]) -> dict[str, Any]:
    """Reports of the steps of a config, by task (and variant)."""
    from mmjax import config
    from mmjax.experiment import Experiment
    from mmjax.plan import assumed, compiler
    from mmjax.plan import flops as flops_lib

    where = topology.parse(options.topology)
    experiment = config.override(config.load(options.config, kind=Experiment), fields)
    experiment, _ = assumed.ready(experiment)
    if options.task:
        if options.task not in experiment.tasks:
            raise SystemExit(f"--task {options.task}: tasks are {', '.join(experiment.tasks)}")
        tasks = {options.task: experiment.tasks[options.task]}
        experiment = dataclasses.replace(experiment, tasks=tasks)
    reports, tasks = {}, experiment.tasks.items()
    keys = [(name, variant) for name, t in tasks for variant in t.variant_weights()]
    for (task, variant), step in compiler.compile_steps(experiment, where, keys).items():
        name = task if variant == "default" else f"{task}_{variant}"
        if step.refused:
            reports[name] = {"refused": step.refused}
            continue
        if options.save:
            options.save.mkdir(parents=True, exist_ok=True)
            (options.save / f"{name}.txt").write_text(step.text)
        flops = flops_lib.step_flops(experiment, task, variant, experiment.vocabulary())
        of_device = flops / where.num_devices if flops else None
        reports[name] = described(step.text, where.chip, options.min_mib, of_device)
        memory = {k: getattr(step, k) for k in ("arguments", "temporaries", "aliased", "seconds")}
        reports[name] |= memory
    return reports


def main() -> None:
    """Compiles or reads, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", help="file.py or file.py:function")
    parser.add_argument("--read", type=Path, help="a saved program instead of a config")
    parser.add_argument("--topology", default="v5e-16", help=topology.EXAMPLES)
    parser.add_argument("--task", help="only this one")
    parser.add_argument("--min-mib", type=float, default=64.0, help="of the arrays that are listed")
    parser.add_argument("--save", type=Path, help="folder for the texts of the programs")
    parser.add_argument("--json", action="store_true")
    options, fields = parser.parse_known_args()
    if (options.config is None) == (options.read is None):
        parser.error("give a config or --read PROGRAM.txt")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the chips are described, arrays lie here
    if options.read:
        chip = topology.parse(options.topology).chip
        reports = {options.read.stem: described(options.read.read_text(), chip, options.min_mib)}
    else:
        reports = compiled(options, fields)
    if options.json:
        print(json.dumps(reports))
        return
    for name, report in reports.items():
        refused = [f"  refused      {report['refused']}"] if "refused" in report else lines(report)
        print("\n".join([name, *refused]))


if __name__ == "__main__":
    main()
