"""load(PATH): a usable model on whatever devices there are, by step, by metric, by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import jax
import mini
import numpy as np
import pytest
import small
from etils import epath

import mmjax
from mmjax import checkpoint, config, errors
from mmjax import load as load_lib
from mmjax import step as step_lib
from mmjax.config import code_file
from mmjax.evaluate import Retrieval
from mmjax.models import names
from mmjax.models.plan import Block, Run
from mmjax.run import manifest as manifest_lib
from mmjax.run import program, records, warm_start
from mmjax.run import workdir as workdir_lib

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(workdir, result) of a run that was evaluated at every checkpoint."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    return workdir, mmjax.train(mini.evaluated(), workdir, devices=ONE)


def test_a_run_ends_with_its_first_scores(trained, tmp_path, capfd):
    workdir = shutil.copytree(trained[0], tmp_path / "again")
    mmjax.train(mini.evaluated(), workdir, devices=ONE)  # finished, so it only evaluates
    scores = json.loads((workdir / "evals" / "losses" / "12.json").read_text())
    first = ", ".join(f"losses/{name} {value:.3f}" for name, value in list(scores.items())[:3])
    said = capfd.readouterr().err
    assert f"{first}: evals/losses/12.json" in said
    scores = json.loads((workdir / "evals" / "retrieval" / "12.json").read_text())
    kept = json.loads((workdir / "evals" / "retrieval" / "baselines.json").read_text())["levels"]
    assert "retrieval (evals/retrieval/12.json)  this run  chance  nearest  ridge" in said
    for name, nearest in kept["nearest"].items():  # without slices
        numbers = (scores[name], kept["chance"][name], nearest, kept["ridge"][name])
        (line,) = [text for text in said.splitlines() if text.strip().startswith(name)]
        assert line.split()[1:5] == [f"{n:.3f}" for n in numbers]
    assert kept["ridge"]["image_to_text_MRR"] > 0.3  # a digit is known by a linear map of it
    assert "not above ridge in 4 of 4 scores" in said
    assert "what to do: train longer" in said


# ---------------------------------------------------------------------- any number of devices


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.slow
def test_embeddings_are_the_same_on_any_number_of_devices(trained, count):
    view = mmjax.load(str(trained[0]), devices=jax.devices()[:count])
    assert view.step == 12
    if count != 3:  # the batches of training do not divide over three
        assert view.program.mesh.size == count
    mini.assert_same(view.params, trained[1].state.params)
    examples = view.examples("val", 130)  # more than one batch of one device
    for modality in ("image", "text"):
        found = view.embed(modality, examples)
        assert found.shape == (130, 32)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose(found, reference(trained[0], modality), atol=1e-5)


REFERENCE: dict = {}


def reference(workdir, modality):
    """Embeddings on one device."""
    if modality not in REFERENCE:
        view = mmjax.load(str(workdir), devices=ONE)
        REFERENCE[modality] = view.embed(modality, view.examples("val", 130))
    return REFERENCE[modality]


def test_an_absent_value_has_no_direction(trained):
    view = mmjax.load(str(trained[0]), devices=ONE)
    found = view.embed("image", [{"text": "no image"}, view.examples("val", 1)[0]])
    assert (found[0] == 0).all()
    assert np.linalg.norm(found[1]) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="'smell' is not in the model"):
        view.embed("smell", [])


# -------------------------------------------------------------------------------- PATHs


def test_a_step_by_its_number(trained):
    view = mmjax.load(f"{trained[0]}@4", devices=ONE)
    assert view.step == 4
    with pytest.raises(
        errors.NoCheckpoint, match=r"no checkpoint of step 5; there are \[4, 8, 12\]"
    ):
        mmjax.load(f"{trained[0]}@5")


@pytest.mark.parametrize(("metric", "best"), [("text/loss", min), ("image_to_text_R@1", max)])
def test_the_best_step_of_a_metric(trained, metric, best):
    workdir = trained[0]
    values = {}
    for file in (workdir / "evals").glob("*/*.json"):
        found = json.loads(file.read_text())
        if metric in found:
            values[int(file.stem)] = found[metric]
    assert sorted(values) == [4, 8, 12]
    _, step = checkpoint.choose_step(f"{workdir}@best:{metric}")
    assert values[step] == best(values.values())


def test_the_best_step_of_an_unknown_metric_names_the_known_ones(trained):
    with pytest.raises(errors.NoCheckpoint, match=r"was not evaluated.*image_to_text_R@1"):
        mmjax.load(f"{trained[0]}@best:nonsense")


def test_paths_that_lead_nowhere(trained, tmp_path):
    for path in (tmp_path / "absent", tmp_path, f"{tmp_path}@3", f"{tmp_path}@best:loss"):
        with pytest.raises(errors.NoCheckpoint, match="no complete checkpoint"):
            mmjax.load(str(path))
    workdir = shutil.copytree(trained[0], tmp_path / "bare")
    (workdir / "config.json").unlink()
    with pytest.raises(errors.NoCheckpoint, match=r"no config\.json"):
        mmjax.load(str(workdir))


@pytest.mark.parametrize(
    ("path", "selector"),
    [
        ("runs/a", ""),
        ("runs/a@b", ""),
        ("runs/a@b@12", "12"),
        ("runs/a@best:image_to_text_R@1", "best:image_to_text_R@1"),
    ],
)
def test_paths_are_taken_apart(path, selector):
    folder, found = checkpoint.parse_path(path)
    assert found == selector
    assert str(folder) == path.removesuffix(f"@{selector}")


def test_another_tokenizer_is_refused(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "other")
    file = workdir / "checkpoints" / "12" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["tokenizers"]["text"] = "0" * 64
    file.write_text(json.dumps(manifest_lib.sealed(manifest)))
    with pytest.raises(errors.NoCheckpoint, match=r"stream 'text' was trained with tokenizer"):
        mmjax.load(str(workdir), devices=ONE)


# --------------------------------------------------------------------------- canonical names


def test_canonical_names_and_back_are_exact(trained):
    built, params = trained[1].program, jax.device_get(trained[1].state.params)
    arrays = built.to_canonical(params)
    assert {"enc/blocks/0/attention/query", "embed/text/table", "dec/memory/kernel"} <= set(arrays)
    assert sum(a.size for a in arrays.values()) == sum(a.size for a in jax.tree.leaves(params))
    zeros = jax.tree.map(np.zeros_like, params)
    back, missing = names.from_canonical(arrays, zeros, built.canonical)
    assert not missing
    mini.assert_same(back, params)


def test_what_is_missing_is_named_and_kept(trained):
    built, params = trained[1].program, jax.device_get(trained[1].state.params)
    arrays = built.to_canonical(params)
    arrays.pop("enc/blocks/0/attention/query")
    ones = jax.tree.map(np.ones_like, params)
    back, missing = names.from_canonical(arrays, ones, built.canonical)
    assert missing == ["enc/blocks/0/attention/query"]
    assert (built.to_canonical(back)["enc/blocks/0/attention/query"] == 1).all()
    arrays["enc/norm/scale"] = np.ones(3)
    with pytest.raises(ValueError, match=r"enc/norm/scale: shape \(3,\) does not fit"):
        names.from_canonical(arrays, ones, built.canonical)


def model_of(plan, params_of=None):
    """(model, canonical arrays) of a plan without heads, filled by name from other arrays."""
    parts = step_lib.split(lambda: plan.make(small.VOCABULARY, {}, 3))
    where = names.canonical_parts(plan, small.VOCABULARY, (), list(names.flatten(parts.params)))
    _, params, state = step_lib.nnx.split(parts.make(), step_lib.nnx.Param, step_lib.ModelState)
    params, state = jax.device_get((step_lib.nnx.as_pure(params), step_lib.nnx.as_pure(state)))
    if params_of is not None:
        params, missing = names.from_canonical(params_of, params, where)
        assert not missing
    return step_lib.bind(parts, params, state, 2, "float32"), names.to_canonical(params, where)


@pytest.mark.slow
def test_another_layer_plan_gives_the_same_features():
    whole = small.config(encoder_layers=4, decoder_layers=1)
    plain, moe = Block(lane="enc"), Block(lane="enc", moe=whole.moe)
    decoder = whole.layer_plan()[1:]
    split = dataclasses.replace(
        whole,
        runs=(Run(pattern=(plain,)), Run(pattern=(moe, plain)), Run(pattern=(moe,)), *decoder),
    )
    alone = dataclasses.replace(whole, runs=(Run(pattern=(plain, moe), repeats=2),))
    rng = np.random.default_rng(0)
    tokens = small.view(rng, "image")
    first, arrays = model_of(whole)
    expected = first.encode(tokens).x_BLD
    assert len(whole.layer_plan()) == 2
    for plan in (split, alone):
        other, _ = model_of(plan, arrays)
        np.testing.assert_allclose(other.encode(tokens).x_BLD, expected, atol=1e-6)
    plan = dataclasses.replace(whole, shape="encoder")
    renamed = {name.replace("enc/", "main/", 1): array for name, array in arrays.items()}
    other, _ = model_of(plan, renamed)
    np.testing.assert_allclose(other.encode(tokens).x_BLD, expected, atol=1e-6)


# ------------------------------------------------------------------------------------- init


def test_parameters_and_tokenizers_come_from_another_run(trained, tmp_path):
    text_only = mini.get_config(
        tasks={"text": mini.get_config().tasks["text"]},
        init=f"{trained[0]}@8",
        data=dataclasses.replace(mini.get_config().data, train_split="val"),
    )
    ready = workdir_lib.ready_modalities(text_only, epath.Path(tmp_path), main=True)
    built = program.build(ready, ONE)
    params = warm_start.find(built).load(built.init_state()).params
    source = mmjax.load(f"{trained[0]}@8", devices=ONE)
    old = source.program.to_canonical(jax.device_get(source.params))
    new = built.to_canonical(jax.device_get(params))
    assert new.keys() < old.keys()  # no contrast, no projections
    for name, array in new.items():
        np.testing.assert_array_equal(array, old[name], err_msg=name)
    # Ids mean what they meant: the tokenizer comes along, though `val` would give another.
    assert built.vocabulary == source.program.vocabulary


@pytest.mark.slow
def test_a_run_starts_from_another_one(trained, tmp_path):
    scores = {"retrieval": Retrieval(modalities=("image", "text"), num_galleries=1)}
    experiment = mini.get_config(init=str(trained[0]), evaluators=scores)
    result = mmjax.train(experiment, tmp_path, devices=ONE)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["lineage"] == run["starts"][0]["init"]["path"] == str(trained[0])
    assert run["starts"][0]["init"]["step"] == 12
    assert run["starts"][0]["init"]["loaded"]["enc/blocks/*/attention/query"] == 1
    assert run["starts"][0]["init"]["fresh"] == run["starts"][0]["init"]["unused"] == {}
    first, before = mini.rows(tmp_path)[1], mini.rows(trained[0])
    assert first["train/text/loss"] < before[1]["train/text/loss"] - 0.3
    assert first["train/text/loss"] == pytest.approx(before[12]["train/text/loss"], abs=0.5)
    assert result.step == 12
    # Evaluated before its first step: the parameters of the other run, routers without a history.
    view = mmjax.load(str(trained[0]), devices=ONE)
    view = dataclasses.replace(view, model_state=view.program.init_state().model_state)
    at_start = json.loads((tmp_path / "evals" / "retrieval" / "0.json").read_text())
    assert at_start == pytest.approx(scores["retrieval"].run(view))
    assert (tmp_path / "evals" / "retrieval" / "12.json").exists()


def test_evaluators_look_at_other_data_than_the_first_task(trained):
    view = mmjax.load(str(trained[0]), devices=ONE)
    other = mini.Spoilt(every=1, text="sixty-three")
    names = {"modalities": ("image", "text"), "num_galleries": 1, "splits": {"": "train"}}
    found = Retrieval(**names, source=other).run(view)
    assert found["image_to_text_R@1"] != Retrieval(**names).run(view)["image_to_text_R@1"]
    assert found == Retrieval(**names).run(view.on(other))


def test_a_run_starts_from_nothing_that_is_absent(tmp_path, capfd):
    experiment = mini.get_config(init=str(tmp_path / "absent"))
    with pytest.raises(errors.NoCheckpoint, match="absent"):
        mmjax.train(experiment, tmp_path / "run", devices=ONE)
    assert "compiled" not in capfd.readouterr().err


def test_code_must_be_the_file_of_the_run(trained, tmp_path, monkeypatch):
    workdir = shutil.copytree(trained[0], tmp_path / "copy")
    run = records.read_run(workdir)
    run["starts"][0]["code_sha256"] = "0" * 64
    records.write_run(workdir, run)
    (tmp_path / "other.py").write_text("")
    digest = hashlib.sha256(b"").hexdigest()
    said = rf"is not the file that .*SHA-256 {digest}, but run.json records {'0' * 64}\)"
    with pytest.raises(config.ConfigError, match=said):
        mmjax.load(str(workdir), code=str(tmp_path / "other.py"))
    with pytest.raises(config.ConfigError, match="cannot be read"):
        mmjax.load(str(workdir), code=str(tmp_path / "absent.py"))


@pytest.mark.fault("run.json does not say which code a run had", "asks, or wants --code-sha256")
@pytest.mark.parametrize("run", ["", "{", '{"starts": 3}', '{"starts": [{"code_sha256": ""}]}'])
def test_code_that_nothing_is_recorded_of_is_asked_for(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "run.json").write_text(run)
    records.write_config(tmp_path, mini.get_config())
    file = tmp_path / "mine.py"
    file.write_text(f"# {run}")
    read = lambda: load_lib.read_experiment(epath.Path(tmp_path), str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(config.ConfigError, match=f"give --code-sha256 {digest}"):
        read()
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "\n", raising=False)
    with pytest.raises(config.ConfigError, match="does not say which file"):
        read()
    monkeypatch.setattr("sys.stdin.readline", lambda: "y\n", raising=False)
    assert read() == mini.get_config()
    assert capsys.readouterr().err.count("run " + str(file)) == 2
    monkeypatch.setattr("sys.stdin.readline", lambda: "\n", raising=False)
    assert read() == mini.get_config()  # the answer holds for this process


def test_the_digest_of_the_user_counts(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("# of the digest")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(config.ConfigError, match=rf"has SHA-256 {digest}, but --code-sha256 says"):
        code_file.check(str(file), "ab")
    with pytest.raises(config.ConfigError, match="give both"):
        code_file.check(None, digest)
    code_file.check(str(file), None)
    with pytest.raises(config.ConfigError, match="is not the file"):
        code_file.check_recorded(str(file), {"": ["0" * 64]}, "w")
    code_file.check(str(file), digest.upper())
    code_file.check_recorded(str(file), {"": ["0" * 64]}, "w")


def test_a_program_holds_no_arrays(trained):
    for field in dataclasses.fields(program.Program):
        leaves = jax.tree.leaves(getattr(trained[1].program, field.name))
        assert not any(isinstance(leaf, jax.Array) for leaf in leaves), field.name


def test_a_lost_tokenizer_is_told_and_not_trained_anew(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    shutil.rmtree(copy / "tokenizers")
    with pytest.raises(errors.NoCheckpoint, match="tokenizer of stream 'text'"):
        mmjax.load(str(copy))
    assert not (copy / "tokenizers").exists()
