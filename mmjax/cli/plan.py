"""`mmjax plan`: what a config takes on a TPU slice or a GPU node, without one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mmjax.cli import options, printing
from mmjax.errors import CheckFailed

if TYPE_CHECKING:
    from mmjax.plan import Plan, Row

__all__ = ["parser", "run", "short", "text"]

USAGE = (
    "CONFIG [--topology T] [--compile | --compile-all] [--json] [--code FILE|MODULE]"
    " [--any.field value ...]"
)
MIB, GIB = 2**20, 2**30


def parser() -> options.Parser:
    """The command line; unknown options set fields of the config."""
    from mmjax.plan import topology

    words = (
        "What CONFIG takes on chips that need not be here: parameters, FLOPs, memory of a device,"
        " traffic, estimated time, the best meshes. Exit 3 when it does not fit."
    )
    made = options.parser("plan", USAGE, words)
    made.add_argument("config", metavar="CONFIG", help="file.py or file.py:function")
    made.add_argument("--topology", default="v5e-16", metavar="T", help=topology.EXAMPLES)
    made.add_argument(
        "--compile",
        action="store_true",
        help="ask XLA's compiler for those chips about the largest step, in minutes",
    )
    made.add_argument("--compile-all", action="store_true", help="ask it about every step")
    options.add_json(made)
    text = "the config file of the run, or a module of an installed package"
    made.add_argument("--code", action="append", default=[], metavar="FILE|MODULE", help=text)
    return made


def run(args: list[str]) -> None:
    """What a config takes on TPUs or GPUs, without any."""
    given, fields = parser().parse_known_args(args)
    from mmjax import config
    from mmjax.experiment import Experiment
    from mmjax.plan import plan

    wants_compiler = given.compile or given.compile_all
    if wants_compiler:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the chips are described, arrays lie here
    experiment = config.load(given.config, kind=Experiment, code=given.code)
    experiment = config.override(experiment, fields)
    made = plan(experiment, given.topology, wants_compiler, given.compile_all)
    print(printing.as_json(made.as_dict()) if given.json else text(made))
    if not made.fits:
        raise CheckFailed(f"{given.config} does not fit {given.topology}: {short(made)}")


def text(plan: Plan) -> str:
    """A plan as text."""
    word = _word(max(plan.tasks.values(), key=lambda task: task["hbm_bytes"]))
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "1 device"
    gib = lambda size: f"{size / GIB:.2f} GiB"
    # A TPU7x shows two devices a chip; of the others a device is a chip.
    shown = f", {plan.devices} devices" if plan.devices != plan.chips else ""
    slow = f" ({', '.join(plan.slow_axes)} across slices or nodes)" if plan.slow_axes else ""
    made = [name for name, task in plan.tasks.items() if "compile_seconds" in task]
    only = f" ({', '.join(made)})" if 0 < len(made) < len(plan.tasks) else ""
    lines = [
        f"{plan.name} on {plan.topology}: {_count(plan.chips, 'chip')}{shown},"
        f" {_count(plan.hosts, 'host')}; mesh {mesh}{slow}; {plan.dtype}, remat"
        f" {plan.remat_policy}",
        f"parameters     {plan.parameters:,}" + f", active {plan.active_parameters:,}",
        f"memory         {gib(plan.hbm_bytes)} {word} of {gib(plan.hbm_limit)} a device:"
        f" {'fits' if plan.fits else 'DOES NOT FIT'}",
        f"a step         {plan.flops_per_step / 1e12:,.2f} TFLOP, estimated"
        f" {plan.estimated_seconds * 1e3:,.1f} ms, {100 * plan.estimated_mfu:.1f} % of peak{only}",
        f"a host         {gib(plan.host_bytes)} estimated of {gib(plan.host_limit)};"
        f" a checkpoint {gib(plan.checkpoint_bytes)}",
    ]
    for name, task in plan.tasks.items():
        lines += ["", f"task {name}", *_task_lines(task)]
    lines += ["", "best meshes, estimated", *_rows(plan.meshes)]
    if plan.remedies:
        lines += ["", "what would help, estimated", *_rows(plan.remedies)]
    lines += [f"assumed: {said}" for said in plan.assumed]
    return printing.visible("\n".join(lines))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _word(task: dict[str, Any]) -> str:
    return "compiled" if "compile_seconds" in task else "estimated"


def _task_lines(task: dict[str, Any]) -> list[str]:
    word = _word(task)
    limits = {name: f"{name} {1e3 * s:,.1f}" for name, s in task["roofline_seconds"].items()}
    lines = [
        f"  FLOPs        {task['flops'] / 1e12:,.2f} T",
        f"  ms           {', '.join(limits.values())} (estimated; the most counts)",
        f"  MiB          {_sizes(task['memory'])} ({word})",
        f"  collectives  {_sizes(task['collectives']) or 'none'} MiB ({word})",
    ]
    if task["attention"]:
        names = ", ".join(f"{lane}: {name}" for lane, name in task["attention"].items())
        lines.append(f"  attention    {names}")
    if task["experts"]:
        names = ", ".join(f"{lane}: {name}" for lane, name in task["experts"].items())
        lines.append(f"  experts      {names}")
    if task["networks"]:
        lines.append(f"  sent         {_sizes(task['networks'])} MiB by a device (estimated)")
    if "compile_seconds" in task:
        kernels = ", ".join(f"{n} x {count}" for n, count in task.get("kernels", {}).items())
        lines.append(
            f"  compiled in  {task['compile_seconds']:.0f} s; kernels: {kernels or 'none'}"
        )
    if task.get("refused"):
        lines.append(f"  the compiler says: {task['refused']}")
    return lines


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / MIB:,.0f}" for name, size in sizes.items() if size >= MIB / 2)


def _rows(rows: tuple[Row, ...]) -> list[str]:
    width = max((len(row.what) for row in rows), default=0)
    return [
        f"  {row.what:{width}}  {row.hbm_bytes / GIB:6.2f} GiB  {1e3 * row.estimated_seconds:8.1f}"
        f" ms{'' if row.fits else '  does not fit'}"
        for row in rows
    ]


def short(plan: Plan) -> str:
    """What it takes, and what would help."""
    helps = [f"{r.what} ({r.hbm_bytes / GIB:.1f} GiB)" for r in plan.remedies if r.fits]
    advice = f"; use {' or '.join(helps)}" if helps else "; use more or larger chips"
    return (
        f"{plan.hbm_bytes / GIB:.1f} GiB a device of {plan.hbm_limit / GIB:.1f}{advice}"
        f"{' (estimated)' if helps else ''}."
    )
