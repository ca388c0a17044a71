"""`mmjax launch gke`: its JobSet by the models of Kubernetes' and JobSet's interfaces; its script.

The models are those of kubeflow-trainer-api 2.3, generated from JobSet v1alpha2 (Apache-2.0). They
let unknown names pass, so that the test walks them itself.
"""

from __future__ import annotations

import copy
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

import mini
import pydantic
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from mmjax import cli
from mmjax.launch import filling, gke
from mmjax.launch.job import Job

Model = type[pydantic.BaseModel]


def job(**fields) -> Job:
    base = {"config": str(mini.QUICKSTART), "workdir": "gs://b/r", "image": "i@sha256:0"}
    return Job(**{**base, "topology": "2xv5e-16", **fields})


def inner(kind: Any) -> Any:
    """The type in Optional, Union and Annotated."""
    if typing.get_origin(kind) is typing.Annotated:
        return inner(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return inner(next(k for k in typing.get_args(kind) if k is not type(None)))
    return kind


def unknown(model: Model, value: dict[str, Any], where: str = "") -> Iterator[str]:
    """Names that the interface does not have."""
    known = {f.alias or name: inner(f.annotation) for name, f in model.model_fields.items()}
    for name, item in value.items():
        path = f"{where}.{name}"
        if name not in known:
            yield path
            continue
        kind, items = known[name], [item]
        if typing.get_origin(kind) is list:
            kind, items = inner(typing.get_args(kind)[0]), item
        if inspect.isclass(kind) and issubclass(kind, pydantic.BaseModel):
            for i in items:
                yield from unknown(kind, i, path) if isinstance(i, dict) else ()


def pod(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def check(spec: dict[str, Any]) -> None:
    assert list(unknown(JobsetV1alpha2JobSet, spec)) == []
    plain = copy.deepcopy(spec)
    limits = pod(plain)["containers"][0]["resources"].pop("limits")
    assert all(type(n) is int for n in limits.values())  # the models wrap numbers with units
    JobsetV1alpha2JobSet.model_validate(plain, strict=True)


def manifest(made: Job) -> dict[str, Any]:
    return yaml.safe_load(gke.files(made)["jobset.yaml"])


@pytest.mark.parametrize(
    "topology", ["v5e-1", "v5e-8", "2xv5e-256", "v4-8", "tpu7x-64", "t4", "4xh100x8"]
)
@pytest.mark.parametrize("spot", [False, True])
def test_jobsets_are_what_kubernetes_takes(topology, spot):
    check(manifest(job(topology=topology, spot=spot, overrides=("--a", "$(b)"), env=(("A", "1"),))))


def test_the_template_itself_is_one():
    check(yaml.safe_load(filling.template("gke/jobset.yaml")))


def test_the_check_finds_what_is_wrong():
    spec = manifest(job())
    pod(spec)["containers"][0]["imag"] = "x"
    assert list(unknown(JobsetV1alpha2JobSet, spec)) == [
        ".spec.replicatedJobs.template.spec.template.spec.containers.imag"
    ]
    spec = manifest(job())
    spec["spec"]["replicatedJobs"][0]["replicas"] = "two"
    with pytest.raises(pydantic.ValidationError, match="replicas"):
        check(spec)


@pytest.mark.parametrize(
    ("topology", "jobs", "pods", "chips", "label"),
    [
        ("v5e-8", 1, 1, {"google.com/tpu": 8}, "2x4"),
        ("v5e-16", 1, 4, {"google.com/tpu": 4}, "4x4"),
        ("2xv5p-64", 2, 8, {"google.com/tpu": 4}, "2x4x4"),
        ("v6e-256", 1, 64, {"google.com/tpu": 4}, "16x16"),
        ("v4-8", 1, 1, {"google.com/tpu": 4}, "2x2x1"),
        ("4xh100x8", 1, 4, {"nvidia.com/gpu": 8}, None),
        ("l4", 1, 1, {"nvidia.com/gpu": 1}, None),
    ],
)
def test_node_pools(topology, jobs, pods, chips, label):
    spec = manifest(job(topology=topology))
    (replicated,) = spec["spec"]["replicatedJobs"]
    assert replicated["replicas"] == jobs
    assert replicated["template"]["spec"]["completions"] == pods
    assert replicated["template"]["spec"]["parallelism"] == pods
    assert pod(spec)["containers"][0]["resources"]["limits"] == chips
    assert pod(spec)["nodeSelector"].get("cloud.google.com/gke-tpu-topology") == label


def test_every_chip_has_a_name_here():
    from mmjax.plan.chips import CHIPS

    assert set(gke.TPUS) | set(gke.GPUS) == set(CHIPS)


def launch(*more: str) -> int:
    args = ["launch", "gke", f"{mini.QUICKSTART}:tiny", "--workdir", "gs://b/r", "--force"]
    return cli.main([*args, "--topology", "v5e-16", "--image", "i", *more])


def test_the_log_is_shown_until_the_run_has_ended(commands, quick, capfd):
    commands.answer("logs", code=1, times=1)  # the pod waits for its node
    commands.answer("logs", out="step 1\n", times=1)
    commands.answer("terminalState", times=2)
    commands.answer("terminalState", out="Completed")
    assert launch() == 0
    assert capfd.readouterr().out == "step 1\n"
    assert [c[1] for c in commands.calls("kubectl")] == [
        *("get", "apply", "logs", "get", "logs", "get", "logs", "get"),
    ]


@pytest.mark.parametrize(("codes", "expected"), [("\n70\n\n69\n", 70), ("", 69), ("0\n\n", 69)])
def test_the_code_of_the_run_comes_back(codes, expected, commands, quick):
    commands.answer("terminalState", out="Failed")
    commands.answer("get pods", out=codes)
    assert launch() == expected


def test_a_cluster_that_is_not_reached(commands, quick):
    commands.answer("apply", code=1, err="connection refused\n")
    assert launch() == 1
    assert not commands.calls("logs")


def test_an_image_has_what_lies_where_it_was_built(tmp_path, monkeypatch):
    config = tmp_path / "project" / "configs" / "mine.py"
    config.parent.mkdir(parents=True)
    config.write_text("def get_config(): ...\n")
    monkeypatch.chdir(tmp_path / "project")
    env = pod(manifest(job(config=f"{config}:get_config")))["containers"][0]["env"]
    assert {"name": "CONFIG", "value": "configs/mine.py:get_config"} in env
    monkeypatch.chdir("/usr")
    with pytest.raises(Exception, match="an image has what lies in the folder where it was built"):
        manifest(job(config=str(config)))
