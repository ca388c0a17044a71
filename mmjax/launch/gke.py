"""`mmjax launch gke`: a JobSet on TPU slices or GPU nodes of a Kubernetes cluster of Google.

It fills in launch/gke/jobset.yaml and run.sh, and runs that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmjax.config.error import ConfigError
from mmjax.launch import job as job_lib
from mmjax.launch.filling import filled
from mmjax.launch.job import Job
from mmjax.launch.running import SameName, Step

__all__ = ["files", "later", "needs", "same_name", "steps"]

needs = "kubectl"
# Labels of node pools.
TPUS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
GPUS = {
    "b200": "nvidia-b200",
    "h200": "nvidia-h200-141gb",
    "h100": "nvidia-h100-80gb",
    "a100": "nvidia-a100-80gb",
    "a100-40gb": "nvidia-tesla-a100",
    "l4": "nvidia-l4",
    "v100": "nvidia-tesla-v100",
    "t4": "nvidia-tesla-t4",
}
UNREACHABLE = {
    "key": "node.kubernetes.io/unreachable",
    "operator": "Exists",
    "effect": "NoExecute",
    "tolerationSeconds": 30,
}


def files(job: Job) -> dict[str, str]:
    """The JobSet, and the script that applies it and waits."""
    job.need("gke", "topology", "image")
    job.need_bucket("gke")
    where, environment = job.where, job.env
    spot = {"cloud.google.com/gke-spot": "true"} if job.spot else {}
    settings: dict[str, Any] = job.settings()
    if where.chip.platform == "tpu":
        if where.num_hosts > 1:
            environment = (("MMJAX_DISTRIBUTED", "1"), *environment)
        shape: dict[str, Any] = {
            "ANNOTATIONS": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
            "SLICES": where.slices,
            "HOSTS": where.num_hosts // where.slices,
            "SELECTOR": {
                "cloud.google.com/gke-tpu-accelerator": TPUS[where.chip.name],
                "cloud.google.com/gke-tpu-topology": "x".join(map(str, where.torus)),
            },
            "CHIPS": {"google.com/tpu": job.chips_per_host},
            "NODES": "",
        }
    else:
        shape = {
            "ANNOTATIONS": {},
            "SLICES": 1,
            "HOSTS": where.num_hosts,
            "SELECTOR": {"cloud.google.com/gke-accelerator": GPUS[where.chip.name]},
            "CHIPS": {"nvidia.com/gpu": job.chips_per_host},
            "NODES": str(where.num_hosts) if where.num_hosts > 1 else "",
        }
    shape["SELECTOR"] |= spot
    taint = {"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"}
    settings |= shape | {
        "TOLERATIONS": [UNREACHABLE, *([taint] if job.spot else [])],
        "CONFIG": _in_image(job),
        "IMAGE": job.image,
        "PROCESSES": str(job.processes),
        "DEVICES": str(job.chips_per_host // job.processes) if job.processes > 1 else "",
        "ENVIRONMENT": "\n".join(f"{name}={value}" for name, value in environment),
        "OVERRIDES": list(job.overrides),
    }
    for name in ("CONFIG", "WORKDIR", "TOPOLOGY", "COMPILE_CACHE", "ENVIRONMENT", "OVERRIDES"):
        settings[name] = _literal(settings[name])
    return {
        "jobset.yaml": filled("gke/jobset.yaml", settings),
        "run.sh": filled("gke/run.sh", {"NAME": job.name}),
    }


def steps(job: Job) -> list[Step]:
    """One: apply the JobSet, and show its log until the run has ended."""
    return [Step("train", ("bash", str(job.folder / "run.sh")))]


def later(job: Job) -> list[Step]:
    """Look at the log again; delete the JobSet."""
    script = str(job.folder / "run.sh")
    return [Step(verb, ("bash", script, verb)) for verb in ("follow", "delete")]


def same_name(job: Job) -> SameName:
    """A JobSet."""
    return SameName(
        ("kubectl", "get", "jobset", job.name, "-o", "name", "--ignore-not-found"),
        f"--name {job.name}: there is a JobSet of that name. Look at it: kubectl describe jobset"
        f" {job.name}; end it: kubectl delete jobset {job.name}; or use another --name.",
    )


def _literal(value: Any) -> Any:
    """Kubernetes reads $(NAME) in values and arguments, and $$ as one dollar."""
    if isinstance(value, list):
        return [_literal(v) for v in value]
    return value.replace("$", "$$")


def _in_image(job: Job) -> str:
    """The config as it lies in an image of launch/docker, made of the working folder."""
    root, file = job_lib.checkout(), job.config_file.absolute()
    inside = root is not None and file.is_relative_to(root / "configs")
    if not inside and not file.is_relative_to(Path.cwd()):
        raise ConfigError(
            f"{job.config}: an image has what lies in the folder where it was built; start there,"
            " with a config below it."
        )
    if inside:
        return job.remote_config
    return str(file.relative_to(Path.cwd())) + job.config.removeprefix(str(job.config_file))
