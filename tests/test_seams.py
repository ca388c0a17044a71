"""Published systems said through the public seams alone (nothing in mmjax knows them), trained."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mini
import numpy as np
import pytest

import mmjax
from mmjax import Task, cli
from mmjax.data.layouts import Aligned, Masked, Policy
from mmjax.data.mixture import Mixture
from mmjax.data.source import Source
from mmjax.data.task import Variant
from mmjax.demo.numbers import Numbers
from mmjax.experiment import Logging
from mmjax.modalities.modality import Modality
from mmjax.models import ExpertChoice, MoE, Transformer
from mmjax.models.embed import Classify
from mmjax.objectives import (
    Contrastive,
    InfoNCE,
    MaskedTokens,
    Objective,
    Sigmoid,
    Symile,
    contrastive,
)
from mmjax.optim import AdamW
from mmjax.run.checkpoint import Checkpointing
from mmjax.run.view import View
from mmjax.typing import Loss, Piece, TokenSpec

sys.path.insert(0, str(Path(__file__).parent / "outside" / "objectives"))

SOURCE = Numbers(train_size=400)


def small(**fields) -> Transformer:
    base = {"width": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 1, "moe": None}
    return Transformer(**{**base, **fields})


def experiment(model: Transformer, tasks: dict[str, Task], **fields) -> mmjax.Experiment:
    base = {
        "modalities": {n: mini.get_config().modalities[n] for n in ("text", "image")},
        "model": model,
        "tasks": tasks,
        "optimizer": AdamW(learning_rate=1e-2),
        "checkpoint": Checkpointing(every=0),
        "logging": Logging(log_every=1),
        "total_steps": 24,
    }
    return mmjax.Experiment(**{**base, **fields})


def train(config: mmjax.Experiment, tmp_path):
    return mmjax.train(config, tmp_path, devices=jax.devices()[:1])


def losses(tmp_path, task: str) -> list[float]:
    name = f"train/{task}/loss"
    return [row[name] for row in mini.rows(tmp_path).values() if name in row]


def assert_falls(tmp_path, task: str, by: float) -> None:
    found = losses(tmp_path, task)
    part = max(1, len(found) // 4)
    assert np.mean(found[-part:]) < np.mean(found[:part]) - by, found


# --------------------------------------------------------------------------------- 4M-21


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shades(Modality):
    """The mean shade of each patch as one of 16 codes: stands in for a learned tokenizer."""

    field: str = "image"

    def spec(self, name):
        return TokenSpec(name=name, kind="grid", max_tokens=8, vocab_size=16, grid=(1, 2, 4))

    def encode(self, value):
        mean = np.asarray(value).reshape(2, 4, 4, 4).mean((1, 3)).ravel()
        row, column = np.divmod(np.arange(8, dtype=np.float32), 4)
        position = np.stack([np.zeros(8, np.float32), row, column], axis=1)
        return Piece(position, ids_L=np.minimum(mean / 8, 15).astype(np.int32))


def test_4m21(tmp_path):
    # Codes and text in and out; patches are only ever seen (METHODS: rgb pixels are no target).
    tasks = {
        "any": Task(
            source=SOURCE,
            inputs=("image", "codes", "text"),
            targets=("codes", "text"),
            layout=Masked(
                input_tokens=16,
                target_tokens=12,
                policies=(
                    Policy(input_alpha=1.0, target_alpha=1.0),
                    Policy(input_alpha={"image": 1000.0}, target_alpha=0.5),
                ),
            ),
            objective=MaskedTokens(),
            batch_size=16,
            group_rows=4,
        )
    }
    modalities = {**mini.get_config().modalities, "codes": Shades()}
    model = small(norm="layer", qk_norm=False, mlp_width=85)
    result = train(experiment(model, tasks, modalities=modalities), tmp_path)
    row = mini.rows(tmp_path)[24]
    assert {"train/any/loss/codes", "train/any/loss/text"} <= set(row)
    assert "train/any/loss/image" not in row
    assert result.program.experiment.model.lane_names() == ("enc", "dec")
    assert_falls(tmp_path, "any", by=0.5)


# --------------------------------------------------------------------------- CLIP, SigLIP


@pytest.mark.parametrize(("kind", "by"), [(InfoNCE, 0.05), (Sigmoid, 1.0)])
@pytest.mark.slow
def test_clip_and_siglip(kind, by, tmp_path):
    lanes = {"image": "vision", "text": "language"}
    pair = Task(
        source=SOURCE,
        inputs=("image", "text"),
        layout=Aligned(),
        objective=kind(width=16, lanes=lanes),
        batch_size=32,
        group_rows=8,
    )
    result = train(experiment(small(shape="towers", lanes=tuple(lanes.values())), {"pair": pair}),
                   tmp_path)  # fmt: skip
    for lane in lanes.values():
        assert f"{lane}/blocks/0/attention/query" in result.program.canonical
    assert "heads/scale/image+text/log_scale" in result.program.canonical
    assert_falls(tmp_path, "pair", by)


# ------------------------------------------------------------------------------------ IMP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """Softmax cross-entropy of a view against the identities, by a head of the data set."""

    view: str
    name: str
    num_classes: int

    def heads(self, inputs, targets):
        return {f"classify/{self.name}": Classify(num_classes=self.num_classes)}

    def losses(self, model, features, batch, key, extra):
        encoded = model.encode(batch.views[self.view], key=key)
        pooled_BSD = contrastive.pool(encoded.x_BLD, encoded.tokens, batch.identity_BS.shape[1])
        logits = jax.nn.log_softmax(model.head(f"classify/{self.name}", pooled_BSD))
        value_BS = -jnp.take_along_axis(logits, batch.identity_BS[:, :, None], axis=-1)[:, :, 0]
        weight_BS = batch.weight_BS / jnp.maximum(jnp.sum(batch.weight_BS), 1.0)
        return {self.name: Loss(value_BS, weight_BS)}, {}, encoded.record


@pytest.mark.ci
def test_imp(tmp_path):
    router = ExpertChoice(allow_unmixed=True)
    model = small(shape="encoder", moe=MoE(num_experts=4, every=1, router=router))
    common: dict[str, Any] = {"source": SOURCE, "layout": Aligned(), "group_rows": 8}
    tasks = {
        "image_text": Task(
            **common,
            inputs=("image", "text"),
            objective=InfoNCE(temperature=0.2),
            interval=1,
            variants={"full": Variant(batch_size=32), "short": Variant(batch_size=16)},
        ),
        "image_classes": Task(
            **common,
            inputs=("image",),
            objective=Classification(view="image", name="numbers", num_classes=100),
            batch_size=32,
            interval=2,
        ),
    }
    how: dict[str, Any] = {"mixture": Mixture(schedule="interval"), "total_steps": 60}
    result = train(experiment(model, tasks, **how), tmp_path)
    assert result.step == 60
    assert len(losses(tmp_path, "image_text")) == 40  # twice as often
    assert len(losses(tmp_path, "image_classes")) == 20
    assert "heads/classify/numbers/kernel" in result.program.canonical
    assert result.program.experiment.model.lane_names() == ("main",)
    assert_falls(tmp_path, "image_classes", by=0.3)


def test_what_imp_does_on_purpose_is_refused_by_accident():
    model = small(shape="encoder", moe=MoE(num_experts=4, every=1, router=ExpertChoice()))
    with pytest.raises(ValueError, match="allow_unmixed=True"):
        experiment(model, {"pair": Task(source=SOURCE, inputs=("image", "text"), layout=Aligned(),
                                        objective=InfoNCE())})  # fmt: skip


# ---------------------------------------------------------------- Symile, with missing parts

BITS = 1  # longer numbers are solved too, bit after bit, in thousands of steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bits(Modality):
    """A number as its bits."""

    def spec(self, name):
        return TokenSpec(name=name, kind="grid", max_tokens=BITS, vocab_size=2, grid=(1, 1, BITS))

    def encode(self, value):
        place = np.arange(BITS)
        position = np.zeros((BITS, 3), np.float32)
        position[:, 2] = place
        return Piece(position, ids_L=((int(value) >> place) & 1).astype(np.int32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Xor(Source):
    """c = a xor b: no two of them say anything about one another. Every fourth lacks one part."""

    def splits(self):
        return ("train", "val")

    def keys(self):
        return ("a", "b", "c")

    def fingerprint(self):
        return "xor"

    def open(self, split):
        rng = np.random.default_rng(self.splits().index(split))
        triples = [(int(a), int(b), int(a ^ b)) for a, b in rng.integers(0, 2**BITS, (1024, 2))]
        records: list[dict[str, Any]] = [dict(zip("abc", t, strict=True)) for t in triples]
        for i in range(0, len(records), 4):
            records[i]["abc"[i // 4 % 3]] = None
        return records


def solve_xor(objective: Contrastive, tmp_path, score) -> float:
    """Share of (a, b) whose best c is a xor b."""
    task = Task(source=Xor(), inputs=("a", "b", "c"), layout=Aligned(), objective=objective,
                batch_size=64, group_rows=8)  # fmt: skip
    config = experiment(
        small(shape="encoder"),
        {"triple": task},
        modalities={name: Bits() for name in "abc"},
        optimizer=AdamW(learning_rate=3e-3),
        logging=Logging(log_every=10),
        total_steps=150,
    )
    result = train(config, tmp_path)
    view = View(program=result.program, params=result.state.params, split="val", step=150,
                model_state=result.state.model_state, extra={})  # fmt: skip
    a, b, c = (view.embed(m, [{m: i} for i in range(2**BITS)]) for m in "abc")
    best = np.argmax(score(a[:, None, None], b[None, :, None], c[None, None, :]), axis=-1)
    number = np.arange(2**BITS)
    return float(np.mean(best == number[:, None] ^ number[None, :]))


@pytest.mark.slow
def test_symile_uses_what_only_three_parts_say_together(tmp_path):
    found = solve_xor(Symile(), tmp_path, lambda a, b, c: np.sum(a * b * c, axis=-1))
    assert found == 1.0
    whole = [row["train/triple/whole"] for row in mini.rows(tmp_path).values()]
    assert 30 < np.mean(whole) < 60  # a quarter of 64 lacks a part
    assert_falls(tmp_path, "triple", by=0.1)


@pytest.mark.ci
def test_pairs_alone_do_not_say_it(tmp_path):
    # Scores f(a, c) + g(b, c) can be right about three of the four (a, b), never about all.
    found = solve_xor(InfoNCE(), tmp_path, lambda a, b, c: np.sum(a * c + b * c, axis=-1))
    assert found <= 0.75
    pairs = 64 * 10 / 12  # of each two views, both are there
    assert losses(tmp_path, "triple")[-1] == pytest.approx(np.log(pairs), abs=0.1)


# ---------------------------------------------------------------- parts of a user's own file

OWN = """
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    import mmjax
    from mmjax import Task, config
    from mmjax.data.layouts import Aligned
    from mmjax.demo.numbers import Numbers
    from mmjax.evaluate import Losses
    from mmjax.modalities.modality import Modality
    from mmjax.models import MoE, Transformer
    from mmjax.models.embed import Projection
    from mmjax.models.routers import Router, Routing
    from mmjax.objectives import InfoNCE
    from mmjax.typing import Loss, Piece, TokenSpec


    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Smell(Modality):
        '''The number as two digits, which smell.'''

        field: str = "number"

        def spec(self, name):
            return TokenSpec(name=name, kind="set", max_tokens=2, vocab_size=10)

        def encode(self, value):
            return Piece(np.zeros((2, 3), np.float32), ids_L=np.array(divmod(value, 10), np.int32))


    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Cubed(InfoNCE):
        '''The cube of the contrast.'''

        def losses(self, *args):
            losses, metrics, record = super().losses(*args)
            cubed = {k: Loss(v.value_BS**3, v.weight_BS) for k, v in losses.items()}
            return cubed, {**metrics, "cubed": jnp.ones(())}, record


    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnExpert(Router):
        '''Each stream has an expert of its own.'''

        def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
            expert = (stream_WT % logits_WTE.shape[-1])[:, :, None]
            return Routing(expert_WTX=expert, weight_WTX=valid_WT[:, :, None].astype(jnp.float32))


    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Shifted(Projection):
        '''A projection with an offset.'''

        def init(self, key, width, vocabulary):
            offset = {"offset": (jnp.ones((self.width or width,)), ("unsharded",))}
            return super().init(key, width, vocabulary) | offset

        def apply(self, params, x, context):
            y = super().apply(params, x, context)
            return y + params["offset"].reshape((1,) * (y.ndim - 1) + (-1,)).astype(y.dtype)


    def get_config():
        moe = MoE(num_experts=2, every=1, router=OwnExpert())
        return mmjax.Experiment(
            modalities={"smell": Smell(), "digit": Smell()},
            model=Transformer(shape="encoder", width=16, num_heads=2, encoder_layers=1, moe=moe,
                              heads={"project/smell": Shifted()}),
            tasks={"pair": Task(source=Numbers(train_size=160), inputs=("smell", "digit"),
                                layout=Aligned(), objective=Cubed(), batch_size=32, group_rows=4)},
            evaluators={"losses": Losses(num_batches=1)},
            total_steps=10,
        )
"""


@pytest.mark.ci
def test_parts_of_a_file_work_through_the_command_line(tmp_path, capsys):
    file, workdir = tmp_path / "own.py", tmp_path / "run"
    file.write_text(textwrap.dedent(OWN))
    args = ["train", str(file), "--workdir", str(workdir), "--logging.log-every", "1"]
    assert cli.main(args) == 0, capsys.readouterr().err
    rows = mini.rows(workdir)
    assert rows[10]["train/pair/cubed"] == 1.0
    assert_falls(workdir, "pair", by=1.0)
    manifest = (workdir / "checkpoints" / "10" / "manifest.json").read_text()
    assert "heads/project/smell/offset" in manifest
    assert "heads/project/digit/offset" not in manifest
    capsys.readouterr()
    assert cli.main(["eval", str(workdir)]) == 2
    said = capsys.readouterr().err
    assert "--code" in said
    assert cli.main(["eval", str(workdir), "--code", str(file)]) == 0
    assert "pair/loss" in capsys.readouterr().out
    file.write_text(file.read_text() + "\n# changed\n")
    assert cli.main(["eval", str(workdir), "--code", str(file)]) == 2
    assert "is not the file" in capsys.readouterr().err
