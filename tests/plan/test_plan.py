"""`mmjax plan`: its figures against a model that is built and a compiled step, its words."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import commands
import jax
import numpy as np
import pytest
import small

import mmjax
from mmjax import cli, config
from mmjax.cli import plan as cli_plan
from mmjax.models import MoE
from mmjax.parallel import MeshConfig
from mmjax.plan import assumed, compiler, flops, meshes, model, planning, topology
from mmjax.run import metrics, program

FOURM = "configs/anyany/fourm.py"
KEYS = {
    *("fits", "hbm_bytes", "hbm_limit", "parameters", "active_parameters", "flops_per_step"),
    *("estimated_seconds", "estimated_mfu", "collectives", "tasks", "mesh", "source"),
}


@pytest.fixture(scope="module")
def tiny(root):
    return config.load(str(root / f"{FOURM}:tiny"))


def with_model(experiment, **fields):
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **fields))


def planned(experiment, name: str = "v5e-8", remat: str = ""):
    ready, _ = assumed.ready(experiment)
    return model.trace_all(ready, topology.parse(name), remat)


@pytest.fixture(scope="module")
def traced(tiny):
    return planned(tiny)


# ------------------------------------------------------------------------------- exact figures


def test_parameters_are_those_of_the_model(tiny):
    built = program.build(tiny, jax.devices()[:1])
    sizes = [x.size for x in jax.tree.leaves(built.init_state().params)]
    made = mmjax.plan(tiny, "v5e-1")
    assert made.parameters == made.active_parameters == sum(sizes)
    state = jax.tree.leaves(built.abstract_state())
    assert made.checkpoint_bytes == sum(x.size * x.dtype.itemsize for x in state)


@pytest.mark.slow
def test_experts_that_are_not_chosen_are_not_active(tiny):
    dense = mmjax.plan(tiny, "v5e-1")
    sparse = mmjax.plan(with_model(tiny, moe=MoE(num_experts=4, every=1)), "v5e-1")
    # Two chosen experts of half the width cost what a dense layer costs; the router is small.
    layers, width = 2, tiny.model.width
    assert sparse.active_parameters == dense.parameters + layers * 4 * width
    assert sparse.parameters > dense.parameters


@pytest.mark.parametrize("shape", ["encoder_decoder", "decoder", "encoder"])
def test_flops_are_those_of_the_traced_products(tiny, shape, root):
    fields = {"shape": shape, "width": 128, "encoder_layers": 2, "decoder_layers": 2}
    task = tiny.tasks["masked"]
    if shape != "encoder_decoder":
        layout = dataclasses.replace(task.layout, single_view=True)
        task = dataclasses.replace(task, layout=layout)
    experiment = dataclasses.replace(with_model(tiny, **fields), tasks={"masked": task})
    found = planned(experiment, "h100x8")  # traced without kernels, whose products nobody sees
    (counted,) = [k.flops for k in found.kept.values()]
    (said,) = [f / 3 for f in found.step_flops.values()]
    # The program reads out of all rooms, and computes what a causal mask hides.
    assert 0.8 < said / counted <= 1.01


def test_flops_of_a_model_without_blocks_are_counted(root):
    experiment = config.load(str(root / "configs/quickstart_tokenizers.py:image"))
    made = mmjax.plan(experiment, "v5e-1")
    assert made.flops_per_step > 0
    assert made.parameters > 0


MESHES = [MeshConfig(), MeshConfig(data=2, fsdp=4), MeshConfig(data=1, fsdp=4, tensor=2)]


@pytest.mark.parametrize("mesh", small.in_turns(MESHES, MESHES[2:]))
def test_arguments_are_those_of_the_compiled_step(tiny, mesh):
    experiment = dataclasses.replace(tiny, mesh=mesh)
    built = program.build(experiment, jax.devices())
    executable, _ = program.compile_step(built, "masked", "default")
    node = topology.parse("h100x8")  # no tiles, as on CPU
    found = model.estimate(model.trace_all(experiment, node), mesh, ("masked", "default"))
    assert found.arguments == executable.memory_analysis().argument_size_in_bytes


# ---------------------------------------------------------------------------------- estimates


@pytest.mark.slow
def test_memory_follows_batch_mesh_and_policy(tiny, traced):
    key, mesh = ("masked", "default"), MeshConfig()
    base = model.estimate(traced, mesh, key).memory
    task = dataclasses.replace(tiny.tasks["masked"], batch_size=128)
    double = dataclasses.replace(tiny, tasks={"masked": task})
    twice = model.estimate(planned(double), mesh, key).memory
    four_times = 4 * base["activations"]  # 32 -> 128 rows
    assert twice["activations"] == pytest.approx(four_times, rel=0.15)
    full = model.estimate(planned(tiny, remat="full"), mesh, key, "full").memory
    assert full["activations"] < 0.7 * base["activations"]
    fsdp = model.estimate(traced, MeshConfig(data=1, fsdp=8), key)
    assert fsdp.memory["optimizer"] < 0.2 * base["optimizer"]
    assert set(fsdp.collectives) >= {"all-gather", "reduce-scatter"}


@pytest.mark.slow
def test_slices_talk_over_the_network_of_the_data_center(tiny):
    found = planned(tiny, "2xv5e-4")
    across = model.estimate(found, MeshConfig(replica=2, data=4), ("masked", "default"))
    assert across.networks["dcn"] < across.networks["ici"]
    with pytest.raises(ValueError, match="use replica=2, data=4"):
        model.estimate(found, MeshConfig(data=8), ("masked", "default"))
    nodes = planned(tiny, "2xh100x4")
    crossing = model.estimate(nodes, MeshConfig(data=8), ("masked", "default"))
    assert "ici" not in crossing.networks
    assert all(m.replica == 2 for m in meshes.candidates(found))


def test_meshes_are_ranked_and_resolve(traced):
    rows = meshes.rank(traced)
    assert rows
    assert [r.fits for r in rows] == sorted((r.fits for r in rows), reverse=True)
    for row in rows:
        words = row.what.split()
        sizes = dict(zip((w[7:] for w in words[::2]), map(int, words[1::2]), strict=True))
        assert np.prod(list(sizes.values())) == 8


@pytest.mark.slow
def test_what_would_help_is_said_with_figures(tiny, monkeypatch):
    monkeypatch.setattr(
        planning.topology_lib.Topology, "hbm_limit", property(lambda self: 1_000_000)
    )
    made = mmjax.plan(tiny, "v5e-8")
    assert not made.fits
    assert made.remedies
    assert all(row.hbm_bytes < made.hbm_bytes for row in made.remedies)
    assert any("fsdp" in row.what for row in made.remedies)


@pytest.mark.slow
def test_each_lane_says_what_computes_its_attention(tiny):
    (task,) = mmjax.plan(tiny, "v5e-1").tasks.values()
    assert task["attention"] == {"enc": "pallas", "dec": "pallas", "dec reads enc": "pallas"}
    asked = with_model(tiny, attention="cudnn")
    (task,) = mmjax.plan(asked, "h100x1").tasks.values()
    assert task["attention"]["enc"] == "cudnn"
    assert task["attention"]["dec"].startswith("chunked (cudnn: it cannot keep streams apart")


@pytest.mark.slow
def test_tokenizers_need_not_be_trained(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no run of the demo lies
    made = mmjax.plan(config.load(str(root / "configs/quickstart.py")), "v5e-8")
    (said,) = made.assumed
    assert "tok_image" in said
    assert "8,192 ids" in said
    assert set(made.tasks) == {"masked", "image_text", "audio_text"}


# ------------------------------------------------------------------------------------ the words


def test_a_plan_needs_no_backend_and_takes_seconds(root):
    program = (
        "import mmjax, resource; from mmjax import config;"
        f"made = mmjax.plan(config.load('{FOURM}:base'), 'v5p-64');"
        "from jax._src import xla_bridge; assert not xla_bridge._backends;"
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime);"
        "assert made.parameters == 260_476_416, made.parameters"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20  # about 6, imports included


@pytest.mark.ci
def test_the_command_prints_json_and_ends_with_3_when_it_does_not_fit(root):
    target = ["plan", f"{FOURM}:tiny"]
    done = commands.run(*target, "--json", "--mesh.data", "2", "--mesh.fsdp", "8", cwd=root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) >= KEYS
    assert found["source"] == "model"
    assert found["fits"] is True
    assert found["mesh"]["fsdp"] == 8
    assert found["topology"] == "v5e-16"
    xlarge = ["plan", f"{FOURM}:xlarge", "--topology", "t4", "--tasks.masked.batch_size", "64"]
    done = commands.run(*xlarge, "--mesh.fsdp", "1", "--mesh.data", "-1", cwd=root)
    assert done.returncode == 3
    assert "DOES NOT FIT" in done.stdout
    assert "float32" in done.stdout
    assert "does not fit t4" in done.stderr
    assert "measured" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "mesh", "said"),
    [
        ("v5p-16", MeshConfig(), "8 chips, 2 hosts; mesh data 8;"),
        ("tpu7x-8", MeshConfig(), "4 chips, 8 devices, 1 host; mesh data 8;"),
        ("v5e-1", MeshConfig(), "1 chip, 1 host; mesh 1 device;"),
        (
            "2xv5e-8",
            MeshConfig(replica=2, data=1, fsdp=8),
            "16 chips, 2 hosts; mesh replica 2, fsdp 8 (replica across slices or nodes);",
        ),
        (
            "2xh100x8",
            MeshConfig(data=1, fsdp=16),
            "16 chips, 2 hosts; mesh fsdp 16 (fsdp across slices or nodes);",
        ),
    ],
)
@pytest.mark.slow
def test_chips_hosts_and_the_slow_network_are_said(name, mesh, said, tiny):
    made = mmjax.plan(dataclasses.replace(tiny, mesh=mesh), name)
    assert said in cli_plan.text(made)
    assert made.devices == topology.parse(name).num_devices
    across = bool(made.slow_axes)
    assert across == ("dcn" in made.networks)


@pytest.mark.slow
def test_what_crosses_nodes_is_sent_slowly(tiny):
    """All of fsdp where it crosses, gradients of the copies alone where `replica` does."""
    pair, key = planned(tiny, "2xh100x8"), ("masked", "default")
    one = model.estimate(pair, MeshConfig(data=1, fsdp=16), key).networks
    inside = model.estimate(pair, MeshConfig(data=2, fsdp=8), key).networks
    two = model.estimate(pair, MeshConfig(replica=2, data=1, fsdp=8), key).networks
    assert set(one) == {"dcn"}
    assert set(inside) == set(two) == {"ici", "dcn"}
    assert two["ici"] > two["dcn"]
    assert two["dcn"] < one["dcn"] / 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--topology", "v5x-16"], "did you mean 'v5"),
        (["--mesh.data", "3"], "Meshes that would do: --mesh.data"),
        (
            ["--mesh.data", "1", "--mesh.tensor", "16"],
            "kv=2 is not divisible by mesh axis tensor=16",
        ),
        (["--mesh.dta", "3"], "did you mean --mesh.data?"),
    ],
)
def test_mistakes_are_told_with_what_would_do(args, said, root, monkeypatch, capsys):
    from mmjax import cli

    monkeypatch.chdir(root)
    assert cli.main(["plan", f"{FOURM}:tiny", *args]) == 2
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------------------------- throughput


def test_the_share_of_the_peak_is_logged_where_the_peak_is_known(tiny):
    meter = metrics.Meter(2, peak_flops=1e12)
    meter.start(0)
    meter.add("masked", {"loss": 1.0}, {}, flops=1e12)
    meter._mark = (meter._mark[0] - 10.0, 0)  # ten seconds ago
    assert meter.row(1)["throughput/mfu"] == pytest.approx(0.05, rel=0.01)
    meter.add("masked", {"loss": 1.0}, {})
    assert "throughput/mfu" not in meter.row(2)
    built = program.build(tiny, jax.devices()[:1])
    assert flops.of_program(built) == ({}, 0.0)  # a CPU


def test_a_run_counts_the_flops_of_its_plan(tiny, monkeypatch):
    monkeypatch.setattr(flops.chips, "peak_flops", lambda kind, dtype: 1e12)
    found, peak = flops.of_program(program.build(tiny, jax.devices()[:1]))
    assert peak == 1e12
    assert found["masked", "default"] == mmjax.plan(tiny, "v5e-1").flops_per_step


PROGRAM = "HloModule m\n\nENTRY %m (a: f32[1]) -> f32[1] {\n  ROOT %a = f32[1]{0} parameter(0)\n}\n"


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--compile", "--compile-all"])
def test_the_largest_step_or_all_are_compiled(flag, root, monkeypatch, capsys):
    asked = []

    def stand_in(experiment, where, keys):
        asked.extend(keys)
        return {key: compiler.Compiled(temporaries=5 << 30, text=PROGRAM) for key in keys}

    monkeypatch.setattr(compiler, "compile_steps", stand_in)
    command = ["plan", f"{root}/configs/quickstart.py:tiny", "--topology", "v5e-1", flag]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    every = re.findall(r"^task (\S+)", said, re.M)
    assert len(every) > 2
    assert len(asked) == (1 if flag == "--compile" else len(every))
    assert "5.00 GiB compiled of" in said
    assert len(re.findall(r"^  MiB .*\(compiled\)$", said, re.M)) == len(asked)
    assert len(re.findall(r"^  MiB .*\(estimated\)$", said, re.M)) == len(every) - len(asked)
