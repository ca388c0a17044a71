"""Decoding is what slow loops over whole model calls give, on any number of devices."""

from __future__ import annotations

import dataclasses

import jax
import letters
import numpy as np
import pytest

import mmjax
from mmjax import step as step_lib
from mmjax.data.layouts import Aligned, Prefix
from mmjax.data.task import Sample, Streams
from mmjax.generate import Decoding, decoders, sample, views
from mmjax.objectives import InfoNCE
from mmjax.typing import Piece, Tokens

SEEDS = [11, 5, 0, 2**32 - 1, 7, 8, 9, 10]


# ------------------------------------------------------------------------ slow references


class Slow:
    """One sample at a time: token lists to views, whole model calls, NumPy for the rest."""

    def __init__(self, view):
        program = self.program = view.program
        self.vocabulary = program.vocabulary

        def whole(source, target, stream):
            model = step_lib.bind(program, view.params, view.model_state, 0, "float32")
            x = model.encode(source).x_BLD if target is None else None
            x = model.decode(target, model.encode(source)).x_BLD if target is not None else x
            read = model.head("vocabulary", x, stream=stream)
            return read.x @ read.table_VD.T

        self.whole = jax.jit(whole, static_argnums=2)

    def tokens(self, rows: list[tuple[str, int, int, float | np.ndarray]], length: int) -> Tokens:
        """(stream, vocabulary id, order, position) of each token of one sample, then padding."""
        ids, stream, order = np.zeros((3, 1, length), np.int32)
        position = np.zeros((1, length, 3), np.float32)
        for slot, (name, token, rank, where) in enumerate(rows):
            ids[0, slot], order[0, slot], position[0, slot] = token, rank, where
            stream[0, slot] = self.vocabulary.number(name)
        return Tokens(ids, stream, (stream > 0).astype(np.int32), order, position)

    def rows(self, name, piece):
        start = self.vocabulary.range(name)[0]
        return [
            (name, int(i) + start, 0, p)
            for i, p in zip(piece.ids_L, piece.position_LA, strict=True)
        ]

    def logits(self, stream, rows, target):
        """Logits [L, V] at the places of `target`, from a pass over all of them."""
        views = self.tokens(rows, 20), self.tokens(target, 8)
        return np.asarray(self.whole(*views, stream))[0, : len(target)]

    def noise(self, seed, stream, step, shape):
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), self.vocabulary.number(stream))
        return np.asarray(jax.random.gumbel(jax.random.fold_in(key, step), shape))

    def order(self, seed, stream, length):
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), self.vocabulary.number(stream))
        return np.asarray(jax.random.permutation(key, length))

    def guided(self, stream, rows, emptied, target, weight):
        known = self.logits(stream, rows, target)
        if weight == 1:
            return known
        without = self.logits(stream, emptied, target)
        return without + weight * (known - without)

    def text(self, rows, emptied, temperature, weight, seed, length=7):
        """Chain of draws, each from a whole pass over what has been written."""
        start = self.vocabulary.range("text")[0]
        written = [("text", start + 1, 0, 0.0)]
        for i in range(length):
            logits = self.guided("text", rows, emptied, written, weight)[-1]
            if temperature:
                logits = logits / temperature + self.noise(seed, "text", i, (1, len(logits)))[0]
            best = int(np.argmax(logits))
            if best == 0 or 1 <= best <= letters.SENTINELS:
                break
            written.append(("text", best + start, i + 1, float(i + 1)))
        return [*(t[1] - start for t in written[1:length]), 0]

    def beams(self, rows, count, weight, length=7):
        """`count` texts that are lengthened side by side, and their scores, the best first."""
        start, alive = self.vocabulary.range("text")[0], [(0.0, [], False)]
        for _ in range(length):
            longer = [beam for beam in alive if beam[2]]
            for score, text, _ in (beam for beam in alive if not beam[2]):
                written = [("text", start + 1, 0, 0.0)]
                written += [("text", t + start, i, float(i)) for i, t in enumerate(text, 1)]
                logits = self.guided("text", rows, [], written, weight)[-1].astype(np.float64)
                log_prob = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
                for i, more in enumerate(log_prob):
                    longer.append((score + more, [*text, i], i <= letters.SENTINELS))
            alive = sorted(longer, key=lambda beam: -beam[0])[:count]
        return [
            ([*(text[:-1] if done else text[: length - 1]), 0], score)
            for score, text, done in alive
        ]

    def levels(self, rows, item, emptied, seed):
        """MaskGIT and ROAR with everything in lists."""
        start = self.vocabulary.range("levels")[0]
        places = letters.Levels().encode(np.zeros((8, 16))).position_LA
        order, found = self.order(seed, "levels", 8), {}
        counts = item.counts(8)
        for step, (count, t) in enumerate(zip(counts, item.temperatures(counts), strict=True)):
            own = [("levels", i + start, 0, places[p]) for p, i in found.items()]
            open_places = [p for p in range(8) if p not in found]
            if item.scheme == "roar":
                done = len(found)
                open_places = [p for p in open_places if done <= order[p] < done + count]
            target = [("levels", 0, 0, places[p]) for p in open_places]
            logits = self.guided("levels", rows + own, [*emptied, *own], target, item.guidance)
            logits = logits / (t if t else 1)
            prob = np.exp(logits - logits.max(-1, keepdims=True))
            prob /= prob.sum(-1, keepdims=True)
            noise = self.noise(seed, "levels", step, (8, 16))[open_places]
            drawn = np.argmax(np.log(prob) + (noise if t else 0), axis=-1)
            sure = prob[np.arange(len(drawn)), drawn]
            kept = np.argsort(-sure, kind="stable")[:count]
            found |= {open_places[k]: int(drawn[k]) for k in kept}
        return [found[p] for p in range(8)]


@pytest.fixture(scope="module")
def slow(view):
    return Slow(view)


def ids(found, stream):
    return [s[stream].ids_L.tolist() for s in found]


# -------------------------------------------------------------------------- left to right


@pytest.mark.parametrize(("temperature", "weight"), [(0.0, 1.0), (1.5, 1.0), (0.0, 3.0)])
def test_text_is_the_chain_of_whole_passes(view, slow, temperature, weight):
    known = letters.pieces(view, ("levels",))
    item = Decoding(stream="text", temperature=temperature, guidance=weight)
    found = ids(sample(view, known, [item], SEEDS), "text")
    assert len(set(map(tuple, found))) > 4
    for row, text in enumerate(found[:4]):  # emptied grids leave nothing
        rows = slow.rows("levels", known[row]["levels"])
        assert text == slow.text(rows, [], temperature, weight, SEEDS[row])


@pytest.mark.parametrize(("beams", "weight"), [(2, 1.0), (5, 1.0), (3, 2.0)])
@pytest.mark.slow
def test_beams_are_what_lists_of_texts_give(view, slow, beams, weight):
    known = letters.pieces(view, ("levels",))
    item = Decoding(stream="text", beams=beams, guidance=weight)
    found = ids(sample(view, known, [item], SEEDS), "text")
    for row, text in enumerate(found[:4]):
        rows = slow.rows("levels", known[row]["levels"])
        expected, score = slow.beams(rows, beams, weight)[0]
        assert text == expected
        assert score >= slow.beams(rows, 1, weight)[0][1] - 1e-6


@pytest.fixture(scope="module")
def contrasted():
    """A model that has learned nothing, with a contrast of levels and text."""
    base = letters.get_config()
    contrast = dataclasses.replace(
        base.tasks["masked"],
        inputs=("levels", "text"), targets=(), layout=Aligned(), objective=InfoNCE(),
    )  # fmt: skip
    return letters.fresh(letters.get_config(tasks={**base.tasks, "contrast": contrast}))


@pytest.mark.parametrize("weight", [10.0, 100.0])
@pytest.mark.slow
def test_the_contrast_chooses_among_the_beams(contrasted, weight):
    known = letters.pieces(contrasted, ("levels",))
    known[1]["levels"] = None
    item = Decoding(stream="text", beams=5, rerank=weight)
    found = ids(sample(contrasted, known, [item], SEEDS), "text")
    text = contrasted.program.experiment.modalities["text"]
    seen_BD, scale = contrasted.embed("levels", contrasted.examples("val")), 1 / 0.07  # at first
    slow, moved = Slow(contrasted), 0
    for row in range(len(SEEDS)):
        rows = [t for n, p in known[row].items() if p is not None for t in slow.rows(n, p)]
        beams = slow.beams(rows, 5, 1.0)
        texts = [
            {"text": text.decode(Piece(np.zeros((7, 3)), ids_L=np.array(t)))} for t, _ in beams
        ]
        score_C = np.array([score for _, score in beams])
        if known[row]["levels"] is not None:
            score_C += weight * scale * contrasted.embed("text", texts) @ seen_BD[row]
        best = int(np.argmax(score_C))
        assert found[row] == beams[best][0]
        moved += best > 0
    assert moved  # otherwise the test would see nothing


def test_without_a_contrast_to_what_is_known_the_best_beam_stays(contrasted):
    known = letters.pieces(contrasted, ("audio",))
    plain, reranked = (Decoding(stream="text", beams=3, rerank=w) for w in (0.0, 1.0))
    found = [ids(sample(contrasted, known, [i], SEEDS), "text") for i in (plain, reranked)]
    assert found[0] == found[1]


def test_rerank_of_a_stream_without_contrast_is_refused(view):
    item = Decoding(stream="text", beams=3, rerank=1.0)
    with pytest.raises(ValueError, match="rerank=1 of stream 'text', but no contrastive task"):
        sample(view, letters.pieces(view, ("levels",)), [item], SEEDS)


def test_a_decoder_writes_the_chain_of_whole_passes():
    view = letters.fresh(letters.decoder())
    known = letters.pieces(view, ("image",))
    found = ids(sample(view, known, [Decoding(stream="text", temperature=2.0)], SEEDS), "text")
    assert len(set(map(tuple, found))) > 4
    slow, vocabulary = Slow(view), view.program.vocabulary
    layout, streams = Prefix(prefix_fraction=(0.0, 0.0)), Streams(("image",), ("text",))
    for row in range(3):
        text: list[int] = []
        for i in range(7):
            # What training makes of image and text so far; the next token is never looked at.
            position = np.arange(i + 1, dtype=np.float32)[:, None].repeat(3, 1)
            piece = views.Piece(position, ids_L=np.int32([*text, 0]))
            made = Sample({**known[row], "text": piece}, 0, (0, 0), seed=0)
            batch, _ = layout.build([made], streams, vocabulary)
            logits = np.asarray(slow.whole(batch.views["input"], None, "text"))[0, 8 + i] / 2
            noise = slow.noise(SEEDS[row], "text", i, (1, len(logits)))[0]
            best = int(np.argmax(logits + noise))
            if best <= letters.SENTINELS:
                break
            text.append(best)
        assert found[row] == [*text[:6], 0]


# ------------------------------------------------------------------------------ in parallel

PLANS = {
    "once": {},
    "maskgit": {"steps": 3},
    "maskgit_drawn": {"steps": 4, "temperature": 1.0, "temperature_schedule": "onex:0.3:0.5"},
    "roar": {"scheme": "roar", "steps": 4, "temperature": 1.0, "schedule": "linear"},
    "guided": {"steps": 2, "temperature": 0.7, "guidance": 2.0},
}


@pytest.mark.parametrize("name", list(PLANS))
@pytest.mark.slow
def test_grids_are_what_lists_and_whole_passes_give(view, slow, name):
    known = letters.pieces(view, ("text",))
    item = Decoding(stream="levels", **PLANS[name])
    found = ids(sample(view, known, [item], SEEDS), "levels")
    assert len(set(map(tuple, found))) > 4
    item = item.resolved(view.program.vocabulary.spec("levels"))
    sentinel = [("text", view.program.vocabulary.range("text")[0] + 1, 0, 0.0)]
    for row in range(3):
        rows = slow.rows("text", known[row]["text"])
        assert found[row] == slow.levels(rows, item, sentinel, SEEDS[row])


def test_what_is_finished_is_known_to_what_follows(view):
    known = letters.pieces(view, ("audio",))
    plan = [Decoding(stream="text", temperature=2.0), Decoding(stream="levels")]
    found = sample(view, known, plan, SEEDS)
    first = sample(view, known, plan[:1], SEEDS)
    assert ids(found, "text") == ids(first, "text")
    both = [{**k, "text": f["text"]} for k, f in zip(known, first, strict=True)]
    assert ids(sample(view, both, plan[1:], SEEDS), "levels") == ids(found, "levels")
    alone = sample(view, known, plan[1:], SEEDS)
    assert ids(alone, "levels") != ids(found, "levels")


# ---------------------------------------------------------------------- seeds and devices


@pytest.mark.slow
def test_a_sample_depends_on_its_seed_alone(view):
    known = letters.pieces(view, ("image",)) * 15  # 120 samples: two calls, the last one padded
    plan = [Decoding(stream="levels", steps=2, temperature=1.5), Decoding(stream="text")]
    seeds = list(range(len(known)))
    many = sample(view, known, plan, seeds)
    for chosen in ([0], [117, 3, 50]):
        few = sample(view, [known[i] for i in chosen], plan, [seeds[i] for i in chosen])
        for name in ("levels", "text"):
            assert ids(few, name) == [ids(many, name)[i] for i in chosen]
    assert len(set(map(tuple, ids(many, "levels")))) > 60


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_sharded_is_unsharded(view, workdir, count):
    other = mmjax.load(str(workdir), code=letters.__file__, devices=jax.devices()[:count])
    assert other.program.mesh.size == count
    known = letters.pieces(view, ("image",)) + letters.pieces(view, ("audio",), 3)
    plan = [Decoding(stream="text", guidance=2.0), Decoding(stream="levels", steps=3)]
    seeds = list(range(len(known)))
    one, two = sample(view, known, plan, seeds), sample(other, known, plan, seeds)
    for first, second in zip(one, two, strict=True):
        for name in ("text", "levels"):
            np.testing.assert_array_equal(first[name].ids_L, second[name].ids_L)


def test_other_settings_compile_nothing(view):
    known = letters.pieces(view, ("image",))
    item = Decoding(stream="levels", steps=2, temperature=0.5, guidance=2.0)
    sample(view, known, [item], SEEDS)
    compiled = dict(view.program.compiled)
    sizes = {k: f._cache_size() for k, f in compiled.items() if k[0] == "generate"}
    for fields in ({"temperature": 1.0}, {"guidance": 3.0}, {"schedule": "linear"}):
        sample(view, known, [dataclasses.replace(item, **fields)], SEEDS[::-1])
    sample(view, known[:5], [item], SEEDS[:5])
    assert {
        k: f._cache_size() for k, f in view.program.compiled.items() if k[0] == "generate"
    } == sizes


def test_what_is_known_compiles_nothing(view):
    item = Decoding(stream="text", top_k=9)  # no other test's
    for names in (("image",), ("audio",), ("levels", "audio")):
        sample(view, letters.pieces(view, names), [item], SEEDS)
    (run,) = [f for k, f in view.program.compiled.items() if getattr(k[1], "top_k", 0) == 9]
    assert run._cache_size() == 1


# ----------------------------------------------------------------------------------- draws


def test_filters_leave_the_nucleus():
    logits = np.log(np.float32([[[0.5, 0.2, 0.15, 0.1, 0.05]]]))[:, :, [3, 0, 4, 1, 2]]
    left = lambda *how: np.isfinite(decoders.filtered(logits, *how))[0, 0].nonzero()[0].tolist()
    assert left(0, 1.0) == [0, 1, 2, 3, 4]
    assert left(2, 1.0) == [1, 3]
    assert left(9, 1.0) == [0, 1, 2, 3, 4]
    assert left(0, 0.4) == [1]
    assert left(0, 0.69) == [1, 3]
    assert left(0, 0.75) == [1, 3, 4]
    assert left(2, 0.72) == [1, 3]  # of the two, which weigh 0.71 and 0.29
    assert left(2, 0.7) == [1]


def test_draws_follow_the_distribution():
    logits = np.tile(np.log(np.float32([0.6, 0.3, 0.1])), (4000, 1, 1))
    style = decoders.Style("x", "roar", 0, 1.0, is_guided=False, is_drawn=True)
    keys = jax.vmap(jax.random.key)(np.arange(4000, dtype=np.uint32))
    drawn, sure = decoders.draw(logits, style, np.float32(1.0), keys)
    share = np.bincount(np.asarray(drawn).reshape(-1), minlength=3) / 4000
    np.testing.assert_allclose(share, [0.6, 0.3, 0.1], atol=0.03)
    np.testing.assert_allclose(np.exp(sure), np.float32([0.6, 0.3, 0.1])[drawn], rtol=1e-5)
    cold, _ = decoders.draw(logits, style, np.float32(0.0), keys)
    assert (np.asarray(cold) == 0).all()
    hot, _ = decoders.draw(logits, style, np.float32(50.0), keys)
    assert (np.bincount(np.asarray(hot).reshape(-1)) > 1100).all()


# ---------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("known", "plan", "message"),
    [
        (("image",), [], r"streams are \[\]"),
        (("image",), ["text", "text"], "want each of some once"),
        (("image",), ["smell"], "'smell' is wanted, but is a target of no generative task"),
        (("image",), ["levls"], "'levls' is wanted.*did you mean 'levels'"),
        (("image",), ["image"], "'image' is wanted, but is a target of no"),
        (("text",), ["text"], "'text' is wanted and given"),
        (("smell",), ["text"], "'smell' is given, but is an input of no generative task"),
    ],
)
def test_what_cannot_be_is_told(view, known, plan, message):
    piece = {"smell": letters.Levels().encode(np.zeros((8, 16)))}
    pieces = [piece if known == ("smell",) else letters.pieces(view, known, 1)[0]]
    with pytest.raises(ValueError, match=message):
        sample(view, pieces, [Decoding(stream=n) for n in plan], [0])
    with pytest.raises(ValueError, match="2 seeds for 1 samples"):
        sample(view, pieces, [Decoding(stream="text")], [0, 1])


def test_models_that_do_not_decode_say_so():
    view = letters.fresh(letters.decoder())
    with pytest.raises(ValueError, match="is a target of no generative task"):
        sample(view, [{}], [Decoding(stream="levels")], [0])
