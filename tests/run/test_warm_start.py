"""Runs that start from parameters of another one: part of them, renamed, copied to experts."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mini
import numpy as np
import pytest
from etils import epath

import mmjax
from mmjax import config
from mmjax.experiment import Init
from mmjax.models import MoE
from mmjax.objectives import InfoNCE
from mmjax.objectives.objective import Extra
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig
from mmjax.run import checkpoint, program, records, warm_start
from mmjax.run import workdir as workdir_lib

ROOT = Path(mmjax.__file__).parent.parent
MODEL = mini.get_config().model
DENSE = dataclasses.replace(MODEL, moe=None, mlp_width=32)
EXPERTS = dataclasses.replace(DENSE, moe=MoE(num_experts=4, width=32, every=1, block_rows=8))
MESHES = {1: MeshConfig(), 8: MeshConfig(data=2, fsdp=2, expert=2)}
UPCYCLE = {"allow_new": ("*/router",), "dense_to_experts": ("*/blocks/*/mlp/*",)}


def save(experiment, folder: Path) -> dict[str, np.ndarray]:
    """A run that has saved its fresh parameters; these by canonical name."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True)
    workdir_lib.open_run(folder, experiment, None, None)
    ready = workdir_lib.ready_modalities(experiment, folder, main=True)
    built = program.build(ready, jax.devices()[:1])
    state = built.init_state()
    saver = checkpoint.Saver(folder, experiment.checkpoint)
    saver.save(state, workdir_lib.manifest(built, 0))
    saver.close()
    return built.to_canonical(jax.device_get(state.params))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(workdir, parameters) of a run of dense blocks."""
    folder = tmp_path_factory.mktemp("runs") / "dense"
    return folder, save(mini.get_config(seed=1, model=DENSE), folder)


def build(source, tmp_path, devices: int = 1, **fields) -> program.Program:
    experiment = mini.get_config(mesh=MESHES[devices], **fields)
    ready = workdir_lib.ready_modalities(experiment, epath.Path(tmp_path), main=True)
    return program.build(ready, jax.devices()[:devices])


def canonical(built, state) -> dict[str, np.ndarray]:
    return built.to_canonical(jax.device_get(state.params))


SIZES = [1, pytest.param(8, marks=pytest.mark.slow)]


@pytest.mark.parametrize("devices", SIZES)
def test_what_is_selected_is_taken_and_the_rest_is_fresh(source, tmp_path, devices, capfd):
    init = Init(path=str(source[0]), select=("enc/**", "embed/*"), allow_new=("dec/*", "heads/*"))
    built = build(source, tmp_path, devices, model=DENSE, init=init)
    fresh = canonical(built, built.init_state())
    found = warm_start.find(built)
    state = found.load(built.init_state())
    shardings = jax.tree.map(lambda x: x.sharding, state)
    assert jax.tree.leaves(shardings) == jax.tree.leaves(built.shardings)
    for name, array in canonical(built, state).items():
        taken = name.startswith(("enc/", "embed/"))
        np.testing.assert_array_equal(array, (source[1] if taken else fresh)[name], err_msg=name)
    report = found.report()
    assert report["loaded"]["enc/blocks/*/mlp/up"] == 1
    assert report["path"] == str(source[0])
    assert report["fresh"] == report["unused"]
    assert set(report["fresh"]) == {n.replace("/0/", "/*/") for n in fresh if n[:3] in "dec hea"}
    said = capfd.readouterr().err
    assert f"parameters are those of {source[0]}@0: " in said
    assert f"init: {len(report['unused'])} of the source are not used: " in said


@pytest.mark.slow
def test_one_lane_becomes_the_other(source, tmp_path):
    pairs = (("enc/blocks/*/attention/*", "dec/blocks/*/attention/*"), ("*", "x/*"))
    init = Init(path=str(source[0]), rename=pairs, allow_new=("**",))
    built = build(source, tmp_path, model=DENSE, init=init)
    found = canonical(built, warm_start.find(built).load(built.init_state()))
    for leaf in ("query", "key", "value", "out"):
        want = source[1][f"enc/blocks/0/attention/{leaf}"]
        np.testing.assert_array_equal(found[f"dec/blocks/0/attention/{leaf}"], want)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.slow
def test_copies_of_a_dense_layer_give_what_it_gives(source, tmp_path, devices):
    init = Init(path=str(source[0]), **UPCYCLE)
    built = build(source, tmp_path, devices, model=EXPERTS, init=init)
    found = warm_start.find(built)
    state = found.load(built.init_state())
    arrays = canonical(built, state)
    for lane in ("enc", "dec"):
        dense, experts = (a[f"{lane}/blocks/0/mlp/up"] for a in (source[1], arrays))
        np.testing.assert_array_equal(experts, np.stack([dense] * 4))
    report = found.report()
    assert report["copied_to_experts"]["enc/blocks/*/mlp/down"] == 1
    assert report["fresh"] == {f"{lane}/blocks/*/mlp/router": 1 for lane in ("enc", "dec")}
    if devices > 1:
        return
    view = mmjax.load(str(source[0]), devices=jax.devices()[:1])
    examples = view.examples("val", 16)
    mine = dataclasses.replace(
        view, program=built, params=state.params, model_state=state.model_state, extra={}
    )
    for modality in ("image", "text"):
        one, two = (v.embed(modality, examples) for v in (view, mine))
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_what_does_not_fit_is_told_before_anything_is_compiled(source, tmp_path, capfd):
    path = str(source[0])
    wrong = {
        r"has no enc/blocks/\*/mlp/router: 1, ": Init(
            path=path, dense_to_experts=UPCYCLE["dense_to_experts"]
        ),
        r"mlp/up is \(32, 32\) there and \(4, 32, 32\) here: 1, .*dense_to_experts": path,
        r"none of its parameters has a place here": Init(path=path, select=("main/*",)),
    }
    for said, init in wrong.items():
        experiment = mini.get_config(model=EXPERTS, init=init)
        with pytest.raises(ValueError, match=f"Init {path}: .*{said}"):
            mmjax.train(experiment, tmp_path / "run", devices=jax.devices()[:1])
    assert "compiled" not in capfd.readouterr().err


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher(InfoNCE):
    """Keeps a copy of the parameters."""

    def extra(self):
        return {"teacher": Extra(init=lambda p: jax.tree.map(jnp.copy, p), update=None)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averaged(AdamW):
    """Its state holds the parameters, as that of schedule-free optimizers does."""

    def make(self, matrices, total_steps):
        inner = super().make(matrices, total_steps)
        init = lambda p: (inner.init(p), jax.tree.map(jnp.copy, p))
        return inner._replace(init=init)


@pytest.mark.parametrize("devices", SIZES)
def test_teachers_and_optimizers_begin_with_what_was_loaded(source, tmp_path, devices):
    tasks = dict(mini.get_config().tasks)
    tasks["image_text"] = dataclasses.replace(tasks["image_text"], objective=Teacher())
    fields = {"tasks": tasks, "optimizer": Averaged(), "init": str(source[0])}
    built = build(source, tmp_path, devices, model=DENSE, **fields)
    state = warm_start.find(built).load(built.init_state())
    mini.assert_same(state.extra["teacher"], state.params)
    mini.assert_same(state.opt_state[1], state.params)
    found, table = canonical(built, state), "embed/text/table"
    np.testing.assert_array_equal(found[table], source[1][table])
    placed = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
    assert placed(state.extra["teacher"]) == placed(state.params)


def test_tokenizers_go_with_the_embeddings_that_are_taken(source):
    learned = lambda **fields: workdir_lib.learned(Init(path=str(source[0]), **fields))
    (folder,) = (source[0] / "tokenizers").iterdir()
    assert {name: Path(p) for name, p in learned().items()} == {"text": folder}
    assert not learned(select=("enc/*",))
    assert list(learned(rename=(("embed/text/*", "embed/caption/*"),))) == ["caption"]


def test_a_config_with_either_form_is_read_back(source, tmp_path):
    whole = Init(path="runs/a@8", rename=(("enc/*", "main/*"),), allow_new=("heads/*",))
    for init in ("", "runs/a", whole):
        experiment = mini.get_config(init=init)
        document = json.loads(config.dump(experiment))
        assert config.from_json(document, config.seam_classes()) == experiment
    assert mini.get_config().warm_start is None
    assert mini.get_config(init="a").warm_start == Init(path="a", allow_new=("**",))
    assert config.override(mini.get_config(), ["--init", "runs/b"]).init == "runs/b"
    set_one = config.override(mini.get_config(init=whole), ["--init.path", "runs/b"])
    assert set_one.init == dataclasses.replace(whole, path="runs/b")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path": ""}, "path='' names no run"),
        ({"select": "enc/*"}, r"select='enc/\*' must be a tuple; write \('enc/\*',\)"),
        ({"rename": ("a", "b")}, r"rename has 'a', but holds pairs"),
        ({"rename": (("a/*", "*/*"),)}, "has no more of them than its pattern"),
        ({"rename": (("a?", "b"),)}, r"wildcards are `\*` alone"),
    ],
)
def test_what_init_refuses(fields, said):
    with pytest.raises(ValueError, match=said):
        Init(**{"path": "a", **fields})


def test_an_experiment_takes_a_path_or_an_init():
    with pytest.raises(ValueError, match=r"init=3 must be a PATH \(str\) or an Init"):
        mini.get_config(init=3)


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_start_from_one_run(source, tmp_path):
    init = Init(path=str(source[0]), **UPCYCLE)
    experiment = mini.get_config(init=init, model=EXPERTS, mesh=MESHES[8], total_steps=1)
    file = tmp_path / "config.json"
    file.write_text(config.dump(experiment))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-m", "mmjax", "launch", "local", "-n", "2", str(file)]
    command += ["--workdir", str(tmp_path / "run"), "--devices-per-process", "4"]
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (start,) = records.read_run(epath.Path(tmp_path / "run"))["starts"]
    assert start["init"]["loaded"]["enc/blocks/*/mlp/up"] == 1
    assert (done.stdout + done.stderr).count("are copied to each expert") == 1


def test_a_finer_picture_starts_from_a_coarser_one(source, tmp_path):
    """docs/init.md, "Another resolution": with a frame, a place of the picture is where it was."""
    modalities = mini.get_config().modalities
    image = dataclasses.replace(modalities["image"], size=(16, 32))  # twice that of the source
    model = dataclasses.replace(DENSE, frames={"image": (1, 2, 4)})
    built = build(
        source, tmp_path, model=model, modalities={**modalities, "image": image},
        init=Init(path=str(source[0])),
    )  # fmt: skip
    found = warm_start.find(built)
    for name, array in canonical(built, found.load(built.init_state())).items():
        np.testing.assert_array_equal(array, source[1][name], err_msg=name)
    assert built.vocabulary.spec("image").grid == (1, 4, 8)
    assert not found.report()["fresh"]
