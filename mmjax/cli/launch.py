"""`mmjax launch` on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mmjax.config.error import ConfigError
from mmjax.launch import local, tpu
from mmjax.processes import compile_cache

__all__ = ["USAGE", "add_arguments", "run"]

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both targets."""
    parser.add_argument("target", metavar="TARGET", help="local or tpu")
    parser.add_argument("config", metavar="CONFIG", help="file.py or file.py:function")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--compile-cache", metavar="PATH", help=compile_cache.HELP)
    parser.add_argument("-n", "--num-processes", type=int, metavar="N", help="local: processes")
    parser.add_argument(
        "--devices-per-process", type=int, metavar="K", help="local: GPUs, or simulated ones"
    )
    parser.add_argument("--restarts", type=int, metavar="N", help="local: at most, default 10")
    parser.add_argument("--topology", metavar="T", help="tpu: such as v5e-64")
    parser.add_argument("--name", metavar="NAME", help="tpu: of the slice")
    parser.add_argument("--zone", metavar="ZONE", help="tpu: such as us-west4-b")
    parser.add_argument("--project", metavar="P", help="tpu: default: that of gcloud")
    parser.add_argument("--spot", action="store_true", default=None, help="tpu: spot capacity")
    parser.add_argument(
        "--dry-run", action="store_true", default=None, help="tpu: print the commands only"
    )


def run(parse: Callable[[list[str]], argparse.Namespace], args: list[str]) -> int:
    """Launches and returns the exit code of the run; what follows `--` goes to `mmjax train`."""
    cut = args.index("--") if "--" in args else len(args)
    options, overrides = parse(args[:cut]), args[cut + 1 :]
    if options.target not in ONLY:
        raise ConfigError(f"launch {options.target}: there is {', '.join(ONLY)}.")
    for target, names in ONLY.items():
        given = [n for n in names if getattr(options, n) is not None]
        if given and target != options.target:
            option = given[0].replace("_", "-")
            raise ConfigError(f"--{option} is for launch {target}, not {options.target}.")
    _check(options.config, overrides)
    kept = options.compile_cache or ""
    if options.target == "local":
        return local.local(
            options.config,
            options.workdir,
            processes=1 if options.num_processes is None else options.num_processes,
            devices_per_process=options.devices_per_process or 0,
            overrides=[*(["--compile-cache", kept] if kept else []), *overrides],
            restarts=10 if options.restarts is None else options.restarts,
        )
    missing = [f"--{n}" for n in NEEDED if getattr(options, n) is None]
    if missing:
        raise ConfigError(f"launch tpu needs {' '.join(missing)}.")
    job = tpu.Job(
        config=options.config,
        workdir=options.workdir,
        topology=options.topology,
        name=options.name,
        zone=options.zone,
        project=options.project or "",
        spot=bool(options.spot),
        overrides=tuple(overrides),
        compile_cache=kept,
    )
    return tpu.tpu(job, dry_run=bool(options.dry_run))


def _check(target: str, overrides: list[str]) -> None:
    """A wrong config is told here, before machines are asked for."""
    if "--compile-cache" in overrides:
        raise ConfigError("--compile-cache is an option of launch; write it before --.")
    if "--code" in overrides:
        return
    from mmjax import config

    config.override(config.load(target), overrides)
