"""A flow that decodes the codes of a tokenizer that is trained already."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_codes

import mmjax
from mmjax import train_tokenizer
from mmjax.data.layouts import Aligned
from mmjax.data.task import Task
from mmjax.demo.numbers import Numbers
from mmjax.experiment import Experiment
from mmjax.modalities.codes import Codes, content
from mmjax.models import FlowDecoder, flow_module
from mmjax.objectives import FlowMatching, Reconstruction
from mmjax.optim import AdamW
from mmjax.run.checkpoint import Checkpointing
from mmjax.tokenizers.learned import Learned

ONE = jax.devices()[:1]
BASE = dataclasses.replace(toy_codes.BASE, field="image")


def experiment(objective, trainable=("**",), flow=None, **fields) -> Experiment:
    task = Task(
        source=Numbers(train_size=256), inputs=("image",), layout=Aligned(), objective=objective,
        batch_size=64, trainable=trainable,
    )  # fmt: skip
    return Experiment(**{
        "modalities": {"image": BASE}, "model": toy_codes.model("vq", flow=flow, width=32),
        "tasks": {"a": task}, "optimizer": AdamW(learning_rate=1e-2, weight_decay=0.0),
        "checkpoint": Checkpointing(every=0), "total_steps": 60, **fields,
    })  # fmt: skip


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Workdirs and reports of a tokenizer and of a flow for its codes."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    reports = [mmjax.train_tokenizer(experiment(Reconstruction()), first, devices=ONE)]
    run = experiment(
        FlowMatching(), ("flow/**",), FlowDecoder(width=32, layers=2), init=str(first),
        total_steps=100,
    )  # fmt: skip
    reports.append(mmjax.train_tokenizer(run, second, devices=ONE))
    return first, second, *reports


def test_codes_stay_and_the_decoder_is_another(stages):
    first, second, before, after = stages
    assert after["fingerprints"]["codes"] == before["fingerprints"]["codes"]
    assert after["fingerprints"]["decoder"] != before["fingerprints"]["decoder"]
    old, new = (Learned.read(folder / "tokenizer") for folder in (first, second))
    for name, array in old.tensors.items():  # the codebook, too
        np.testing.assert_array_equal(new.tensors[name], array)
    assert {n.split("/")[0] for n in set(new.tensors) - set(old.tensors)} == {"flow"}
    for key in ("usage", "perplexity", "tokens"):
        assert after[key] == before[key]
    assert after["first_decoder"] == {k: before[k] for k in after["first_decoder"]}
    assert "by the decoder before the flow" in train_tokenizer.text(after)


def test_the_flow_draws_what_the_codes_say(stages):
    """Its pictures are far closer to those that the codes are of than to others."""
    learned = Learned.read(stages[1] / "tokenizer")
    images = [Numbers().open("val")[i]["image"] for i in range(200)]
    pieces = np.stack([content(BASE.encode(image), BASE.spec("image")) for image in images])
    decoded = learned.decode(learned.encode(pieces))
    own = np.mean(np.square(decoded - pieces))
    assert own < 0.7 * np.mean(np.square(decoded - np.roll(pieces, 1, axis=0)))


def test_a_value_decodes_alike_whatever_is_beside_it_and_a_seed_draws_another(stages, tmp_path):
    learned = Learned.read(stages[1] / "tokenizer")
    codes = Codes(base=BASE, path=str(stages[1])).fit(lambda: iter(()), tmp_path / "copy")
    images = [Numbers().open("val")[i]["image"] for i in range(5)]
    ids = codes.encode_batch(images)
    decoded = learned.decode(ids)
    np.testing.assert_array_equal(learned.decode(ids), decoded)
    np.testing.assert_allclose(learned.decode(ids[3:4])[0], decoded[3], atol=1e-4)
    assert np.abs(learned.decode(ids, seed=1) - decoded).max() > 0.01
    assert np.stack(codes.decode_batch(ids)).shape == (5, 8, 16, 1)


def test_integration_has_the_order_that_it_should():
    """Of dx/dt = x from 1: a step of Euler multiplies by 1 + h, one of Heun by 1 + h + h^2 / 2."""
    growth = lambda x, time: x
    for steps in (1, 5):
        h = 1 / steps
        euler = flow_module.integrated(growth, jnp.ones(2), steps, "euler")
        heun = flow_module.integrated(growth, jnp.ones(2), steps, "heun")
        np.testing.assert_allclose(euler, (1 + h) ** steps, rtol=1e-6)
        np.testing.assert_allclose(heun, (1 + h + h * h / 2) ** steps, rtol=1e-6)
    clock = lambda x, time: time * jnp.ones_like(x)  # its integral is 1/2
    np.testing.assert_allclose(
        flow_module.integrated(clock, jnp.zeros(2), 4, "euler"), 0.375, rtol=1e-6
    )
    np.testing.assert_allclose(
        flow_module.integrated(clock, jnp.zeros(2), 4, "heun"), 0.5, rtol=1e-6
    )


def test_what_does_not_fit_is_refused(tmp_path):
    flow = FlowDecoder(width=8)
    with pytest.raises(ValueError, match="init='', but no task trains the encoder, so that its c"):
        mmjax.train_tokenizer(experiment(FlowMatching(), ("flow/**",), flow), tmp_path)
    with pytest.raises(ValueError, match="FlowMatching needs a flow, but the model has flow=None"):
        experiment(FlowMatching(), ("flow/**",))
    with pytest.raises(ValueError, match=r"trains the flow alone; use trainable=\('flow/"):
        experiment(FlowMatching(), ("flow/**", "decoder/**"), flow)
    with pytest.raises(ValueError, match="holds parameters of encoder and decoder and flow"):
        experiment(Reconstruction(), ("**",), flow)
    with pytest.raises(ValueError, match=r"num_heads=2 does not divide flow\.width=9"):
        toy_codes.model("attention", flow=FlowDecoder(width=9))
    with pytest.raises(ValueError, match="steps=0"):
        FlowDecoder(steps=0)
