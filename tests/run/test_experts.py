"""Use of the experts between two logs: sums against NumPy's, alarms, and nothing counted twice."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import mini
import numpy as np
import pytest
import small
from etils import epath

import mmjax
from mmjax.models import ByStream, MoE, TokenChoice, Transformer
from mmjax.models.plan import Block, Run
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.optim import AdamW, PCGrad
from mmjax.run import experts

STREAMS = tuple(spec.name for spec in small.SPECS)
OK = {"loss": 1.0, "skipped": 0.0}
CHOSEN = 2  # experts a token


def window(model: Transformer, folder=None) -> experts.Window:
    experiment = types.SimpleNamespace(model=model)
    program = types.SimpleNamespace(experiment=experiment, vocabulary=small.VOCABULARY)
    return experts.Window(program, folder)  # type: ignore[arg-type]


def stack(router=None, num_experts: int = 4, layers: int = 2) -> Transformer:
    moe = MoE(num_experts=num_experts, every=1, router=router or TokenChoice())
    return small.config(shape="encoder", encoder_layers=layers, moe=moe)


# ------------------------------------------------------------------- sums against NumPy's


def oracle(steps: list[dict], name: str, repeat: int) -> dict[str, float]:
    """Figures of one layer from all loads of a window, written down from their definitions."""
    load = np.sum([s[name][repeat] for s in steps if name in s], axis=0, dtype=np.float64)
    total = load[1:].sum(0)
    share = total / (total.sum() / len(total))
    p = total[total > 0] / total.sum()
    out = {
        "load_max": share.max(),
        "load_min": share.min(),
        "entropy": -(p * np.log(p)).sum() / np.log(len(total)),
        "dead": np.mean(share < 0.01),
    }
    for m, stream in enumerate(STREAMS, 1):
        if load[m].any():
            out[f"{stream}/load_max"] = load[m].max() * len(total) / load[m].sum()
    return out


def test_a_window_of_alternating_tasks_is_the_sum_of_its_steps(tmp_path):
    """One task shows text to both layers, the other images and codes; padding does not count."""
    rng, watch, steps = np.random.default_rng(0), window(stack(), epath.Path(tmp_path)), []
    for step in range(7):
        load = rng.integers(0, 90, (2, 4, 4)).astype(np.float32)
        load[:, [2, 3] if step % 2 else [1]] = 0
        load[0, :, 3] = 0  # an expert of the first layer that nobody uses
        steps.append({"load/0/0": load})
        left = watch.add(step, {**OK, "loss/x": 2.0, **steps[-1]})
        assert left == {**OK, "loss/x": 2.0}
    row = watch.row(7)
    for layer in (0, 1):
        for name, value in oracle(steps, "load/0/0", layer).items():
            assert row.pop(f"moe/layer_{layer}/{name}") == pytest.approx(value, rel=1e-12), name
    assert row.pop("moe/alarm/dead_experts") == 1
    assert row == {"moe/alarm/busy_expert": 0, "moe/alarm/overflow": 0}
    table = json.loads((tmp_path / experts.FILE).read_text())
    assert (table["steps"], table["streams"]) == ([1, 7], list(STREAMS))
    want = np.sum([s["load/0/0"] for s in steps], axis=0)[:, 1:]
    np.testing.assert_array_equal([layer["load"] for layer in table["layers"]], want)
    assert watch.row(8) == {}  # the next window is empty


def test_a_skipped_step_adds_nothing_and_the_next_window_begins_anew():
    watch, load = window(stack(layers=1)), np.full((1, 4, 4), 30.0, np.float32)
    watch.add(0, {**OK, "load/0/0": load})
    watch.add(1, {**OK, "skipped": 1.0, "load/0/0": np.full_like(load, np.nan)})
    assert watch.row(2)["moe/layer_0/load_max"] == 1
    load[:, :, 0] = 60
    watch.add(2, {**OK, "load/0/0": load})
    assert watch.row(3)["moe/layer_0/load_max"] == pytest.approx(60 / 37.5)


def test_layers_have_the_same_number_whichever_lane_runs():
    """Two places with experts in each of two repeats, in two lanes, and a dense block between."""
    moe = MoE(num_experts=2, router=TokenChoice())
    pattern = (Block(lane="a", moe=moe), Block(lane="b"), Block(lane="b", moe=moe))
    watch = window(Transformer(width=32, num_heads=4, runs=(Run(pattern=pattern, repeats=2),)))
    load = np.zeros((2, 4, 2), np.float32)
    load[:, 1] = [[30, 10], [10, 10]]
    watch.add(0, {**OK, "load/0/2": load})
    assert [(x.number, x.where) for x in watch.layers()] == [(1, "b 1"), (3, "b 3")]
    row = watch.row(1)
    assert (row["moe/layer_1/load_max"], row["moe/layer_3/load_max"]) == (1.5, 1.0)


# --------------------------------------------------------------------- nothing counts twice


TASKS = {
    "masked": (MaskedTokens(), small.masked_batch),  # image to codes
    "pair": (InfoNCE(), small.pair_batch),  # image against text
}


def loads(task: str, **how) -> dict[str, np.ndarray]:
    """What a step of a task records."""
    model, (objective, batch) = small.config(remat_policy=how.pop("remat", "none")), TASKS[task]
    parts, tx, shardings, state = small.setup(model, [objective], optimizer=AdamW())
    _, out = small.train_step(model, parts, tx, objective, shardings, **how)(state, batch())
    return {name: np.asarray(x) for name, x in out.items() if name.startswith("load")}


@pytest.fixture(scope="module")
def plain():
    return loads("masked")


def chosen(views: dict) -> dict[str, int]:
    """By stream, from the batch alone: tokens of a view times experts a token."""
    return {stream: int((view.stream_BL > 0).sum()) * CHOSEN for stream, view in views.items()}


def by_stream(load_NME) -> dict[str, int]:
    (load_M,) = load_NME[:, 1:].sum(-1)  # of one repeat
    return {stream: int(n) for stream, n in zip(STREAMS, load_M, strict=True) if n}


def test_a_token_counts_once_for_each_expert_that_it_chose(plain):
    views = small.masked_batch().views
    assert by_stream(plain["load/0/1"]) == chosen({"image": views["input"]})
    assert by_stream(plain["load/1/1"]) == chosen({"codes": views["target"]})


@pytest.mark.slow
def test_the_views_of_a_contrast_count_once_each():
    found = loads("pair")
    assert by_stream(found["load/0/1"]) == chosen(small.pair_batch().views)
    assert found.keys() == {"load/0/1"}  # the decoder did not run


@pytest.mark.parametrize(
    "how", [{"remat": "full"}, pytest.param({"rule": PCGrad()}, marks=pytest.mark.slow)],
    ids=["remat", "rule"],
)  # fmt: skip
@pytest.mark.slow
def test_a_backward_pass_that_computes_again_counts_nothing_again(how, plain):
    """Every layer computed twice, or several backward passes of a gradient rule."""
    found = loads("masked", **how)
    assert found.keys() == plain.keys()
    for name, load in plain.items():
        np.testing.assert_array_equal(found[name], load)


@pytest.mark.slow
def test_a_batch_in_two_halves_gives_the_window_of_the_whole():
    """As gradients that are accumulated over two halves would: one window takes both."""
    model = small.config(shape="encoder", moe=MoE(num_experts=4, every=1, width=32))
    parts, tx, shardings, state = small.setup(model, [InfoNCE()], optimizer=AdamW())
    step = small.train_step(model, parts, tx, InfoNCE(), shardings)
    batch, half = small.pair_batch(), small.ROWS // 2
    found = []
    for rows in ([slice(None)], [slice(0, half), slice(half, None)]):
        watch = window(model)
        for i, part in enumerate(rows):
            own = jax.tree.map(lambda x, part=part: x[part], batch)
            watch.add(i, step(jax.tree.map(lambda x: x.copy(), state), own)[1])
        found.append(watch.layers())
    assert [len(layers) for layers in found] == [2, 2]
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a.load_ME, b.load_ME)


# ---------------------------------------------------------------------------------- alarms


def load_of(total_E, layers: int = 1) -> np.ndarray:
    load = np.zeros((layers, 4, len(total_E)), np.float32)
    load[:, 1] = total_E
    return load


@pytest.mark.parametrize(
    ("total_E", "kind", "says"),
    [
        ([500, 1, 500, 500], "dead_experts", ["1 of 4", "bias_rate", "num_experts"]),
        ([5200, *[1000] * 3, 500, *[200] * 3], "busy_expert", ["4.5 fair shares", "bias_rate"]),
    ],
)
def test_an_uneven_load_is_said_once_with_its_remedy(total_E, kind, says, capfd):
    watch = window(stack(num_experts=len(total_E), layers=1))
    for step in range(2):
        watch.add(step, {**OK, "load/0/0": load_of(total_E)})
        assert watch.row(step + 1)[f"moe/alarm/{kind}"] == 1
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("warning")]
    assert "steps 1 to 1" in line
    assert "layer 0 (main 0)" in line
    for words in says:
        assert words in line


def test_dropped_tokens_are_said_with_what_makes_room(capfd):
    watch = window(stack(layers=3))
    for dropped in (2.0, 30.0):
        record = {"overflow/0/0": np.asarray([[dropped, 1000.0]] * 3, np.float32)}
        watch.add(0, {**OK, "load/0/0": load_of([250] * 4, 3), **record})
    row = watch.row(1)
    assert row["moe/layer_2/overflow"] == pytest.approx(32 / 2000)
    assert row["moe/alarm/overflow"] == 3
    said = capfd.readouterr().err
    for words in ("1.6 %", "and 1 more", "raise capacity_factor"):
        assert words in said


@pytest.mark.parametrize(
    "layer",
    [
        experts.Layer(number=0, where="main 0", load_ME=np.array([[3.0, 0, 0, 0]])),  # too few
        experts.Layer(
            number=0, where="main 0", load_ME=np.array([[900.0, 0]]), is_learned=False
        ),  # a stream that no task of this window has
        experts.Layer(
            number=0, where="main 0", load_ME=np.array([[200.0, 200]]), overflow=0.01
        ),
    ],
    ids=["few tokens", "no learned router", "at the limit"],
)  # fmt: skip
def test_what_is_no_reason_to_worry_gives_no_alarm(layer):
    assert layer.alarms() == {}


def test_experts_by_stream_are_known_to_learn_nothing():
    watch = window(stack(ByStream(experts=(0, 1, 1)), num_experts=2, layers=1))
    watch.add(0, {**OK, "load/0/0": load_of([900, 0])})
    assert [x.is_learned for x in watch.layers()] == [False]


@pytest.mark.slow
def test_a_step_whose_experts_have_little_room_says_what_it_dropped():
    moe = MoE(num_experts=4, every=1, width=32, implementation="capacity", capacity_factor=0.5)
    model = small.config(shape="encoder", moe=moe)
    parts, tx, shardings, state = small.setup(model, [InfoNCE()], optimizer=AdamW())
    step = small.train_step(model, parts, tx, InfoNCE(), shardings)
    watch = window(model)
    watch.add(0, step(state, small.pair_batch())[1])
    row = watch.row(1)
    for layer in (0, 1):  # experts have room for half of the choices
        assert 0.4 < row[f"moe/layer_{layer}/overflow"] < 0.9
    assert row["moe/alarm/overflow"] == 2


# ------------------------------------------------------------------------------ a whole run


@pytest.mark.slow
def test_a_log_holds_the_steps_of_all_tasks_since_the_last_one(tmp_path, monkeypatch):
    """Steps of two tasks in turn, logged every sixth; the last row is of steps 7 to 12."""
    seen, add = [], experts.Window.add

    def watched(self, step, out):
        seen.append({n: np.asarray(x) for n, x in out.items() if n.startswith("load")})
        return add(self, step, out)

    monkeypatch.setattr(experts.Window, "add", watched)
    config = mini.get_config()
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, log_every=6))
    mmjax.train(config, tmp_path, devices=jax.devices()[:1])
    rows = mini.rows(tmp_path)
    assert sorted(rows) == [6, 12]
    streams = {name.split("/")[2] for name in rows[12] if name.count("/") == 3 and "moe" in name}
    assert streams == {"text", "image"}
    load = np.sum([s["load/0/0"] for s in seen[6:]], axis=0, dtype=np.float64)[0, 1:]
    assert rows[12]["moe/layer_0/load_max"] == pytest.approx(
        load.sum(0).max() * load.shape[1] / load.sum(), rel=1e-5
    )
    table = json.loads((tmp_path / experts.FILE).read_text())
    np.testing.assert_allclose(table["layers"][0]["load"], load)
    assert table["steps"] == [7, 12]
