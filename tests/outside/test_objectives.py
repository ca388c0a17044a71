"""Objectives that a stranger defines, one file each: trained, resumed, compared as they compare."""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import mini
import numpy as np
import pytest
import small

import mmjax
from mmjax import ConfigError, config
from mmjax.evaluate import Retrieval, ZeroShot
from mmjax.export import describe
from mmjax.generate.plan import Decoding
from mmjax.generate.sampling import sample
from mmjax.objectives import CoCa, InfoNCE, MaskedTokens, Objective, Sigmoid, Symile
from mmjax.parallel import MeshConfig
from mmjax.run.view import View

sys.path.insert(0, str(Path(__file__).parent / "objectives"))
import ema_teacher
import late_interaction
import matching
import queue_of_negatives

OBJECTIVES: dict[str, InfoNCE | Symile | CoCa] = {
    "late_interaction": late_interaction.LateInteraction(width=16),
    "matching": matching.Matching(),
    "ema_teacher": ema_teacher.EmaTeacher(width=16),
    "queue": queue_of_negatives.Queue(names=("image", "text"), size=96),
    "symile": Symile(width=16),
    "coca": CoCa(contrast=InfoNCE(width=16)),
}
NAMES = [
    pytest.param(n, marks=[] if n == "late_interaction" else pytest.mark.ci) for n in OBJECTIVES
]


def experiment(objective, **fields) -> mmjax.Experiment:
    """The small run of two tasks, its contrast by this objective."""
    base = mini.get_config()
    tiny = config.load(f"{mini.QUICKSTART}:tiny")
    task = tiny.tasks["masked"]
    both = ("image", "text")
    tasks = {**base.tasks, "text": dataclasses.replace(task, inputs=both, targets=("text",))}
    said = {"objective": objective, "targets": ("text",) if isinstance(objective, CoCa) else ()}
    tasks["image_text"] = dataclasses.replace(tasks["image_text"], **said)
    evaluators = {
        "retrieval": Retrieval(modalities=("image", "text"), num_galleries=1),
        "zero_shot": ZeroShot(modalities=("image",), limit=50),
    }
    return mini.get_config(tasks=tasks, evaluators=evaluators, **fields)


@functools.cache
def trained(name: str):
    """(view, metrics) of a run."""
    folder = tempfile.mkdtemp()
    result = mmjax.train(experiment(OBJECTIVES[name]), folder, devices=jax.devices()[:1])
    view = View(
        program=result.program, params=result.state.params, step=result.step, split="val",
        model_state=result.state.model_state, extra=result.state.extra,
    )  # fmt: skip
    losses = [r["train/image_text/loss"] for r in mini.rows(folder).values()
              if "train/image_text/loss" in r]  # fmt: skip
    return view, result.metrics, losses, folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_it_trains_and_is_retrieved_by_its_own_similarity(name):
    view, metrics, losses, _ = trained(name)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    examples = view.examples("val", 100)
    a, b = (view.embed(m, examples) for m in ("image", "text"))
    scores = np.asarray(OBJECTIVES[name].similarity(a, b))
    assert scores.shape == (100, 100)
    identity = np.array([e["identity"] for e in examples])
    best = identity[np.argmax(scores, axis=1)] == identity  # ties are rare
    assert metrics["retrieval/image_to_text_R@1"] == pytest.approx(best.mean(), abs=0.02)
    assert 0 <= metrics["zero_shot/image_top1"] <= 1
    if name == "late_interaction":
        assert a.shape == (100, 8, 16)  # a vector for each patch
        absent = view.embed("image", [{"text": "one"}])
        assert (absent == 0).all()


def test_sets_of_vectors_are_not_scored_by_a_pooled_one():
    a_NLD = np.eye(4, dtype=np.float32)[np.array([[0, 1], [2, 3]])]
    b_MLD = np.eye(4, dtype=np.float32)[np.array([[1, 0], [2, 2], [3, 3]])]
    b_MLD[2, 1] = 0  # no token
    found = np.asarray(OBJECTIVES["late_interaction"].similarity(a_NLD, b_MLD))
    want = [[1, 0, 0], [0, 0.5 * (0.5 + 1), 0.5 * (0.5 + 1)]]
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_beams_are_reranked_by_it(name):
    view, _, _, _ = trained(name)
    known = [
        {"image": view.program.experiment.modalities["image"].encode(e["image"])}
        for e in view.examples("val", 3)
    ]
    plans = [Decoding(stream="text", beams=3, rerank=w) for w in (0.0, 1e4)]
    plain, ranked = (sample(view, known, [plan], range(3)) for plan in plans)
    images = view.embed_pieces("image", [k["image"] for k in known])
    near = []
    for part in (plain, ranked):
        words = view.embed_pieces("text", [made["text"] for made in part])
        near.append(np.diagonal(view.similarity("image_text", words, images)))
    assert (near[1] >= near[0] - 1e-5).all()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exported_or_refused_by_name(name):
    run = experiment(OBJECTIVES[name])
    if name == "late_interaction":
        with pytest.raises(ConfigError, match="objective LateInteraction of modality 'image'"):
            describe.exported(run)
    else:
        assert set(describe.exported(run)) == {"image", "text"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_task_that_contrasts_and_predicts_generates(tmp_path):
    task = dataclasses.replace(
        mini.get_config().tasks["image_text"], targets=("text",), objective=CoCa()
    )
    run = mini.get_config(tasks={"image_text": task}, total_steps=800)
    result = mmjax.train(run, tmp_path, devices=jax.devices()[:1])
    view = View(
        program=result.program, params=result.state.params, step=result.step, split="val",
        model_state=result.state.model_state, extra=result.state.extra,
    )  # fmt: skip
    losses = [row["train/image_text/text/loss"] for row in mini.rows(tmp_path).values()]
    assert np.mean(losses[-50:]) < 0.4 * np.mean(losses[:50])
    examples = view.examples("val", 100)
    names: dict = {}  # of a picture, in any language
    for example in view.examples("val", 1000):
        names.setdefault(example["identity"], set()).add(example["text"])
    image, text = (view.program.experiment.modalities[name] for name in ("image", "text"))
    known = [{"image": image.encode(e["image"])} for e in examples]
    made = sample(view, known, [Decoding(stream="text")], range(100))
    right = [text.decode(m["text"]) in names[e["identity"]]
             for m, e in zip(made, examples, strict=True)]  # fmt: skip
    assert np.mean(right) > 0.4, np.mean(right)  # one of a hundred numbers, in any of its languages


# That CoCa is the same when sharded is in the conformance tests: its batches have targets.
@pytest.mark.ci
@pytest.mark.parametrize("name", small.in_turns([n for n in OBJECTIVES if n != "coca"], ["queue"]))
def test_sharded_equals_unsharded_with_its_state(name):
    objective, found = OBJECTIVES[name], []
    extras = objective.extra()
    for count, axes in ((1, {}), (8, {"data": 2, "fsdp": 2, "tensor": 2})):
        mesh = MeshConfig(**axes).make(jax.devices()[:count])
        model = small.config("encoder", moe=None)
        parts, tx, shardings, state = small.setup(model, [objective], mesh, extras=extras)
        step = small.train_step(model, parts, tx, objective, shardings, extras=extras)
        losses = []
        with jax.set_mesh(mesh):
            for seed in range(3):
                batch = jax.device_put(small.pair_batch(seed), small.batch_sharding(mesh))
                state, metrics = step(state, batch)
                losses.append(float(metrics["loss"]))
        found.append((losses, jax.device_get(state.extra)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found[0][1], found[1][1])


@pytest.mark.slow
def test_a_teacher_moves_and_a_queue_fills():
    view, _, _, _ = trained("ema_teacher")
    teacher, params = (jax.tree.leaves(t) for t in (view.extra["ema_teacher"], view.params))
    assert any(np.any(t != p) for t, p in zip(teacher, params, strict=True))
    view, _, _, folder = trained("queue")
    assert 0 < float(jnp.sum(view.extra["queue"]["there"])) <= 96
    again = mmjax.load(f"{folder}", code=queue_of_negatives.__file__, devices=jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, view.extra, again.extra)


# ------------------------------------------------------------------------- what is refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Silent(InfoNCE):
    """Has features of its own, and does not say how they are compared."""

    def embed(self, model, batch, key):
        return super().embed(model, batch, key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Half(Objective):
    def views(self, task):
        return tuple(task.inputs)

    def represent(self, model, tokens, view, num_slots, key=None):
        return jnp.zeros((len(tokens.ids_BL), num_slots, 4)), {}

    def losses(self, model, features, batch, key, extra):
        return {}, {}, {}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"targets": ("text",)}, r"targets=.'text',. are predicted by no InfoNCE; .* CoCa"),
        ({"objective": CoCa()}, r"targets=.. leaves nothing to predict"),
        (
            {"objective": CoCa(contrast=late_interaction.LateInteraction()), "targets": ("text",)},
            "contrast=LateInteraction does not compare pooled vectors",
        ),
        (
            {"objective": CoCa(), "targets": ("image", "text")},
            r"leave none of inputs=.'image', 'text'. to predict them from",
        ),
    ],
)
def test_what_cannot_contrast_and_predict_is_refused(fields, told):
    base = mini.get_config()
    task = dataclasses.replace(base.tasks["image_text"], **fields)
    with pytest.raises(ValueError, match=rf"Task 'image_text': .*{told}"):
        mini.get_config(tasks={**base.tasks, "image_text": task})


def test_an_objective_that_would_be_scored_by_something_else_is_refused():
    with pytest.raises(
        ValueError, match=r"Task 'image_text': objective Silent defines embed\(\) with"
    ):
        experiment(Silent())


@pytest.mark.ci
def test_what_is_missing_is_told_by_class_and_method():
    view, _, _, _ = trained("late_interaction")
    tasks = view.program.experiment.tasks
    replaced = {**tasks, "image_text": dataclasses.replace(tasks["image_text"], objective=Half())}
    changed = dataclasses.replace(view.program.experiment, tasks=replaced)
    half = dataclasses.replace(
        view, program=dataclasses.replace(view.program, experiment=changed, compiled={})
    )
    z = half.embed("image", view.examples("val", 2))
    with pytest.raises(
        ValueError, match=r"Half: similarity\(\) is not defined beside represent\(\)"
    ):
        half.similarity("image_text", z, z)
    alone = {"text": tasks["text"]}
    changed = dataclasses.replace(view.program.experiment, tasks=alone)
    masked = dataclasses.replace(
        view, program=dataclasses.replace(view.program, experiment=changed)
    )
    with pytest.raises(ValueError, match="'image' is in no contrastive task"):
        masked.embed("image", [])
    with pytest.raises(ValueError, match=r"MaskedTokens: represents no views; define views\(\)"):
        MaskedTokens().represent(None, None, "image", 1)


def test_objectives_that_do_not_compare_are_told():
    base = mini.get_config()
    image, text = base.tasks["image_text"], base.tasks["text"]
    sound = base.modalities["image"]
    tasks = {
        "one": dataclasses.replace(image, inputs=("image", "text")),
        "two": dataclasses.replace(
            image, inputs=("text", "scan"), objective=OBJECTIVES["late_interaction"]
        ),
        "text": text,
    }
    changed = dataclasses.replace(base, tasks=tasks, modalities={**base.modalities, "scan": sound})
    view = View(program=_Stub(changed), params={}, model_state={}, extra={}, step=0, split="val")
    assert view.comparing("image", "text") == {"image": "one", "text": "one"}
    assert view.comparing("text", "scan") == {"text": "two", "scan": "two"}
    pooled = {**tasks, "two": dataclasses.replace(tasks["two"], objective=Sigmoid())}
    shared = dataclasses.replace(base, tasks=pooled, modalities=changed.modalities)
    other = dataclasses.replace(view, program=_Stub(shared))
    assert other.comparing("image", "scan") == {"image": "one", "scan": "two"}  # one space
    with pytest.raises(ValueError, match=r"'image' by InfoNCE \(task 'one'\), 'scan' by LateInt"):
        view.comparing("image", "scan")


@dataclasses.dataclass
class _Stub:
    experiment: mmjax.Experiment


def test_a_scale_at_its_limit_comes_back():
    objective = InfoNCE(temperature=0.01)  # a scale of 100
    model = small.config("encoder", moe=None)
    parts, tx, shardings, state = small.setup(model, [objective])
    step = small.train_step(model, parts, tx, objective, shardings)
    scales = []
    for seed in range(6):
        state, metrics = step(state, small.pair_batch(seed))
        scales.append(float(metrics["scale"]))
    assert max(scales) <= 100.001
    assert scales[-1] < scales[0] - 0.01, scales


def test_a_layout_that_mixes_inputs_is_told():
    base = mini.get_config()
    task = dataclasses.replace(
        base.tasks["text"], inputs=("image", "text"), targets=("text",), objective=CoCa()
    )
    batch = types.SimpleNamespace(views={"input": None, "target": None}, targets={})
    with pytest.raises(ValueError, match=r"CoCa: layout gives the views input, target; .*Aligned"):
        task.objective.embed(None, batch, None)
