"""A tokenizer with a critic: two tasks of one run, what is refused, what is written."""

from __future__ import annotations

import dataclasses
import json

import jax
import mini
import numpy as np
import pytest
import toy_codes

import mmjax
from mmjax import config
from mmjax.data.layouts import Aligned
from mmjax.data.task import Task
from mmjax.demo.numbers import Numbers
from mmjax.experiment import Experiment
from mmjax.modalities.segmentation import Segmentation
from mmjax.models import Critic
from mmjax.objectives import Adversary, Reconstruction
from mmjax.optim import AdamW
from mmjax.run.checkpoint import Checkpointing
from mmjax.tokenizers.learned import Learned

ONE = jax.devices()[:1]


def task(objective, *trainable: str, **fields) -> Task:
    return Task(**{
        "source": Numbers(train_size=64), "inputs": ("image",), "layout": Aligned(),
        "objective": objective, "batch_size": 16, "trainable": trainable, **fields,
    })  # fmt: skip


FIRST = task(Reconstruction(adversarial=0.1), "encoder/**", "decoder/**")
SECOND = task(Adversary(), "critic/**")


def experiment(tasks=None, **fields) -> Experiment:
    """Six steps of a small tokenizer of pictures, and of its critic."""
    model = toy_codes.model("vq", critic=Critic(width=8, levels=2))
    base = dataclasses.replace(toy_codes.BASE, field="image")
    return Experiment(**{
        "modalities": {"image": base}, "model": model,
        "tasks": tasks or {"reconstruct": FIRST, "criticise": SECOND},
        "optimizer": AdamW(learning_rate=1e-2, weight_decay=0.0, warmup_steps=0),
        "checkpoint": Checkpointing(every=0), "total_steps": 6, **fields,
    })  # fmt: skip


def test_both_tasks_train_and_the_tokenizer_is_that_of_a_model_without_a_critic(tmp_path):
    report = mmjax.train_tokenizer(experiment(), tmp_path, devices=ONE)
    last = mini.rows(tmp_path)[6]
    assert last["train/reconstruct/loss/adversarial"] != 0
    assert 0 < last["train/criticise/loss/critic"] < 3
    learned = Learned.read(tmp_path / "tokenizer")
    assert not [name for name in learned.tensors if name.startswith("critic")]
    assert learned.model == dataclasses.replace(experiment().model, critic=None)
    without = dataclasses.replace(toy_codes.learned("vq"), tensors=learned.tensors)
    same = dataclasses.replace(without, preprocessing=learned.preprocessing, spec=learned.spec)
    assert same.fingerprints == learned.fingerprints == report["fingerprints"]
    manifest = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    assert manifest["model"]["critic"] is None


def test_a_critic_of_a_frozen_generator_learns_to_tell_the_two_apart(tmp_path):
    """Its loss is 1 where it knows nothing."""
    task = dataclasses.replace(SECOND, source=Numbers(train_size=256), batch_size=64)
    run = experiment({"criticise": task}, total_steps=60)
    mmjax.train(run, tmp_path, devices=ONE)
    last = mini.rows(tmp_path)[60]
    assert last["train/criticise/loss"] < 0.5
    assert last["train/criticise/accuracy"] > 0.9


def test_the_config_survives_as_json():
    tree = config.to_json(experiment())
    assert config.from_json(tree, config.seam_classes()) == experiment()


def test_what_does_not_fit_is_refused():
    classes = Segmentation(names=("a", "b"), size=(8, 16), cell=1, ignore=-1)
    without = dataclasses.replace(experiment().model, critic=None)
    held = r"trainable=\('\*\*',\) holds parameters of encoder and decoder and critic"
    for fields, message in (
        ({"model": without}, "objective Reconstruction needs a critic, but the model has critic=N"),
        ({"model": without, "tasks": {"a": SECOND}}, "Task 'a': objective Adversary needs a crit"),
        ({"model": mini.get_config().model, "tasks": {"a": SECOND}}, "Adversary needs an Autoenco"),
        ({"tasks": {"a": task(Reconstruction(), "**")}}, held),
        ({"tasks": {"a": task(Adversary(), "encoder/**")}}, r"trainable=\('encoder/\*\*',\), but"),
        ({"tasks": {"a": task(Adversary(), "**")}}, "Adversary trains the critic alone; use train"),
        ({"tasks": {"a": task(Adversary(), "critic/**", targets=("image",))}}, "for one modality"),
        ({"modalities": {"image": classes}, "tasks": {"a": SECOND}}, "Adversary is for numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            experiment(**fields)
    ids = Reconstruction(error="cross_entropy", adversarial=0.1)
    with pytest.raises(ValueError, match=r"adversarial=\.\.\.\) is for numbers, but stream 'imag"):
        experiment({"a": task(ids, "encoder/**")}, modalities={"image": classes})
    with pytest.raises(ValueError, match="adversarial=-1"):
        Reconstruction(adversarial=-1)
    assert experiment({"a": task(Reconstruction(), "encoder/layers/*", "decoder/**")})


def test_a_model_without_a_critic_draws_what_one_with_it_draws():
    """So that recipes keep their numbers when a critic is given to them."""
    model = experiment().model
    of = lambda model: toy_codes.of(toy_codes.BASE, model).tensors
    one, other = of(model), of(dataclasses.replace(model, critic=None))
    assert set(other) == {name for name in one if not name.startswith("critic/")}
    for name, array in other.items():
        np.testing.assert_array_equal(one[name], array)
