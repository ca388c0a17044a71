"""`mmjax launch`: trains on several local processes, or on Cloud TPUs."""

from __future__ import annotations

import sys

from mmjax.cli import options
from mmjax.config.error import ConfigError
from mmjax.launch import local, tpu
from mmjax.processes import compile_cache

__all__ = ["parser", "run"]

USAGE = (
    "local CONFIG --workdir DIR [-n N] [--devices-per-process K] [--restarts N]"
    " [--compile-cache PATH] [-- ...]\n"
    "       mmjax launch tpu CONFIG --workdir gs://... --topology v5e-64 --name NAME --zone ZONE"
    " [--project P] [--spot] [--compile-cache PATH] [--dry-run] [-- ...]"
)
ONLY = {
    "local": ("num_processes", "devices_per_process", "restarts"),
    "tpu": ("topology", "name", "zone", "project", "spot", "dry_run"),
}
NEEDED = ("topology", "name", "zone")


def parser() -> options.Parser:
    """The command line of both targets, up to `--`."""
    made = options.parser("launch", USAGE, "Trains on several processes or Cloud TPUs.")
    made.add_argument("target", metavar="TARGET", help="local or tpu")
    made.add_argument("config", metavar="CONFIG", help="file.py or file.py:function")
    made.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    made.add_argument("--compile-cache", metavar="PATH", help=compile_cache.HELP)
    made.add_argument("-n", "--num-processes", type=int, metavar="N", help="local: processes")
    made.add_argument(
        "--devices-per-process", type=int, metavar="K", help="local: GPUs, or simulated ones"
    )
    made.add_argument("--restarts", type=int, metavar="N", help="local: at most, default 10")
    made.add_argument("--topology", metavar="T", help="tpu: such as v5e-64")
    made.add_argument("--name", metavar="NAME", help="tpu: of the slice")
    made.add_argument("--zone", metavar="ZONE", help="tpu: such as us-west4-b")
    made.add_argument("--project", metavar="P", help="tpu: default: that of gcloud")
    made.add_argument("--spot", action="store_true", default=None, help="tpu: spot capacity")
    made.add_argument(
        "--dry-run", action="store_true", default=None, help="tpu: print the commands only"
    )
    return made


def run(args: list[str]) -> None:
    """Train on several local processes, or on Cloud TPUs."""
    sys.exit(_launched(args))


def _launched(args: list[str]) -> int:
    """Launches and returns the exit code of the run; `mmjax train` gets the options after `--`."""
    cut = args.index("--") if "--" in args else len(args)
    given, overrides = parser().parse_args(args[:cut]), args[cut + 1 :]
    if given.target not in ONLY:
        raise ConfigError(f"launch {given.target}: there is {', '.join(ONLY)}.")
    for target, names in ONLY.items():
        wrong = [n for n in names if getattr(given, n) is not None]
        if wrong and target != given.target:
            option = wrong[0].replace("_", "-")
            raise ConfigError(f"--{option} is for launch {target}, not {given.target}.")
    _check(given.config, overrides)
    kept = given.compile_cache or ""
    if given.target == "local":
        return local.local(
            given.config,
            given.workdir,
            processes=1 if given.num_processes is None else given.num_processes,
            devices_per_process=given.devices_per_process or 0,
            overrides=[*(["--compile-cache", kept] if kept else []), *overrides],
            restarts=10 if given.restarts is None else given.restarts,
        )
    missing = [f"--{n}" for n in NEEDED if getattr(given, n) is None]
    if missing:
        raise ConfigError(f"launch tpu needs {' '.join(missing)}.")
    job = tpu.Job(
        config=given.config,
        workdir=given.workdir,
        topology=given.topology,
        name=given.name,
        zone=given.zone,
        project=given.project or "",
        spot=bool(given.spot),
        overrides=tuple(overrides),
        compile_cache=kept,
    )
    return tpu.tpu(job, dry_run=bool(given.dry_run))


def _check(target: str, overrides: list[str]) -> None:
    """Reports a wrong config before machines are requested."""
    if "--compile-cache" in overrides:
        raise ConfigError("--compile-cache is an option of launch; write it before --.")
    if "--code" in overrides:
        return
    from mmjax import config

    config.override(config.load(target), overrides)
