"""`mmjax launch`: trains in several processes of this machine, or on machines elsewhere."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from mmjax.cli import options
from mmjax.config.error import ConfigError, nearest
from mmjax.errors import CheckFailed
from mmjax.processes import compile_cache

if TYPE_CHECKING:
    from mmjax.launch.job import Job
    from mmjax.launch.running import Target

__all__ = ["parser", "run", "target"]

TARGETS = {
    "local": "processes of this machine",
    "tpu": "Cloud TPU VMs and slices",
    "gke": "a JobSet on TPU slices or GPU nodes",
    "slurm": "GPU nodes of a Slurm cluster",
    "sky": "any cloud, through SkyPilot",
    "ssh": "hosts of your own",
}
USAGE = (
    "TARGET CONFIG --workdir DIR [--topology T] [options] [--dry-run] [-- ...]\n\n"
    + "\n".join(f"  {name:6} {words}" for name, words in TARGETS.items())
    + "\n\nWhat follows -- goes to mmjax train."
)
REMOTE = tuple(t for t in TARGETS if t != "local")


class Option(NamedTuple):
    """An option of some targets: how argparse reads it, and who has it."""

    flags: tuple[str, ...]
    targets: tuple[str, ...]
    help: str
    metavar: str = ""
    kind: Any = str
    action: str = "store"


OPTIONS = (
    Option(("--topology",), tuple(TARGETS), "what the hosts are, such as v5e-64 or 2xh100x8", "T"),
    Option(("--retries",), tuple(TARGETS), "starts without progress, default 3", "N", int),
    Option(("--dry-run",), REMOTE, "print a script that does it all", action="store_true"),
    Option(("--name",), REMOTE, "of slice, JobSet or job; default mmjax", "NAME"),
    Option(("--env",), REMOTE, "a variable of every host; may be given again", "NAME=VALUE",
           action="append"),
    Option(("--force",), REMOTE, "also when mmjax plan says that it does not fit",
           action="store_true"),
    Option(("--spot",), ("tpu", "gke", "sky"), "capacity that is cheaper, and taken away",
           action="store_true"),
    Option(("-n", "--num-processes"), ("local", "gke", "slurm", "sky", "ssh"),
           "of each host, default 1", "N", int),
    Option(("--package",), ("tpu", "sky", "ssh"),
           "what pip installs there; default: this checkout, or this release", "REQUIREMENT"),
    Option(("--image",), ("gke", "sky"), "of the container, best with its digest", "IMAGE"),
    Option(("--python",), ("slurm", "ssh"), "a Python there that has mmjax", "PATH"),
    Option(("--zone",), ("tpu",), "such as us-west4-b", "ZONE"),
    Option(("--project",), ("tpu",), "default: that of gcloud", "P"),
    Option(("--partition",), ("slurm",), "default: that of the cluster", "P"),
    Option(("--account",), ("slurm",), "default: that of the cluster", "A"),
    Option(("--time",), ("slurm",), "limit, D-HH:MM:SS", "TIME"),
    Option(("--cloud",), ("sky",), "such as gcp/us-central1; default: the cheapest", "CLOUD"),
    Option(("--hosts",), ("ssh",), "names for ssh, the first is the coordinator", "A,B,..."),
    Option(("--devices-per-process",), ("local",), "GPUs, or simulated ones on CPU", "K", int),
    Option(("--restarts",), ("local",), "at most, default 10", "N", int),
    Option(("--nodes",), ("local",), "machines of the run, each with a launch local", "N", int),
    Option(("--node-rank",), ("local",), "which of them this is, from 0", "R", int),
    Option(("--coordinator",), ("local",), "an address of machine 0", "HOST:PORT"),
)  # fmt: skip


def parser() -> options.Parser:
    """The command line of all targets, up to `--`."""
    made = options.parser("launch", USAGE, "Trains in several processes, here or elsewhere.")
    made.add_argument("target", metavar="TARGET", help=", ".join(TARGETS))
    made.add_argument("config", metavar="CONFIG", help="file.py or file.py:function")
    made.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    made.add_argument("--compile-cache", metavar="PATH", help=compile_cache.HELP)
    groups: dict[tuple[str, ...], Any] = {}
    for option in OPTIONS:
        group = groups.get(option.targets)
        if group is None:
            title = {tuple(TARGETS): "all targets", REMOTE: "all but local"}.get(option.targets)
            title = title or ", ".join(option.targets)
            group = groups[option.targets] = made.add_argument_group(title)
        if option.action == "store_true":
            group.add_argument(*option.flags, action="store_true", default=None, help=option.help)
        else:
            group.add_argument(
                *option.flags,
                action=option.action,
                type=option.kind,
                metavar=option.metavar,
                help=option.help,
            )
    return made


def run(args: list[str]) -> None:
    """Train in several local processes, on TPUs, Kubernetes, Slurm, clouds, or your own hosts."""
    sys.exit(_launched(args))


def _launched(args: list[str]) -> int:
    """Launches and returns the exit code of the run; `mmjax train` gets the options after `--`."""
    cut = args.index("--") if "--" in args else len(args)
    given, overrides = parser().parse_args(args[:cut]), args[cut + 1 :]
    _check_options(given)
    experiment = _loaded(given.config, overrides)
    if given.target == "local":
        return _local(given, overrides)
    from mmjax.launch import running

    chosen, job = target(given.target), _job(given, overrides)
    chosen.files(job)  # says what is wrong with the job before the plan takes its half minute
    if experiment is not None and given.topology and not (given.force or given.dry_run):
        _refuse_what_does_not_fit(given.config, experiment, given.topology)
    return running.launch(chosen, job, bool(given.dry_run))


def target(name: str) -> Target:
    """The module of a target of other machines. Not imported before: `mmjax --help` is instant."""
    from mmjax.launch import gke, sky, slurm, ssh, tpu

    modules: dict[str, Target] = {
        "tpu": tpu,
        "gke": gke,
        "slurm": slurm,
        "sky": sky,
        "ssh": ssh,
    }
    return modules[name]


def _check_options(given: argparse.Namespace) -> None:
    """Refuses a target that there is not, and options that are of another."""
    if given.target not in TARGETS:
        near = nearest(given.target, TARGETS)
        raise ConfigError(f"launch {given.target}: is no target{near}")
    for option in OPTIONS:
        name = option.flags[-1]
        value = getattr(given, name[2:].replace("-", "_"))
        if value is not None and given.target not in option.targets:
            raise ConfigError(
                f"{name} is for launch {', '.join(option.targets)}, not {given.target}."
            )


def _loaded(config_path: str, overrides: list[str]) -> Any:
    """Reports a wrong config before machines are requested. None = only `mmjax train` can read it,
    with the code that --code names."""
    if "--compile-cache" in overrides:
        raise ConfigError("--compile-cache is an option of launch; write it before --.")
    if "--code" in overrides:
        return None
    from mmjax import config

    return config.override(config.load(config_path), overrides)


def _local(given: argparse.Namespace, overrides: list[str]) -> int:
    from mmjax.launch import local

    names = ("devices_per_process", "restarts", "retries", "nodes", "node_rank", "coordinator")
    set_ = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.num_processes is not None:
        set_["processes"] = given.num_processes
    kept = ["--compile-cache", given.compile_cache] if given.compile_cache else []
    return local.local(
        given.config,
        given.workdir,
        topology=given.topology or "",
        overrides=[*kept, *overrides],
        **set_,
    )


def _job(given: argparse.Namespace, overrides: list[str]) -> Job:
    from mmjax.launch.job import Job

    names = ("topology", "name", "zone", "project", "partition", "account", "time", "cloud")
    names += ("package", "python", "image", "spot", "retries", "compile_cache")
    set_ = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.num_processes is not None:
        set_["processes"] = given.num_processes
    env = [item.partition("=") for item in given.env or ()]
    for name, equals, _ in env:
        if not equals:
            raise ConfigError(f"--env {name}: write NAME=VALUE.")
    return Job(
        config=given.config,
        workdir=given.workdir,
        hosts=tuple((given.hosts or "").split(",")) if given.hosts else (),
        env=tuple((name, value) for name, _, value in env),
        overrides=tuple(overrides),
        **set_,
    )


def _refuse_what_does_not_fit(config: str, experiment: Any, topology: str) -> None:
    """Raises CheckFailed with the line of `mmjax plan`."""
    from mmjax.cli import plan
    from mmjax.plan import planning

    made = planning.plan(experiment, topology)
    if not made.fits:
        raise CheckFailed(
            f"{config} does not fit {topology}: {plan.short(made)}; mmjax plan {config} --topology"
            f" {topology} says what helps, --force launches all the same."
        )
