"""Augmentation in batches: what it depends on, what it leaves alone, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

import jax
import numpy as np
import own
import pytest
import toy_codes

from mmjax import config, errors
from mmjax.data import layouts, loader, mixture
from mmjax.data.augment import Augment
from mmjax.data.pictures import Pictures
from mmjax.data.sounds import Sounds
from mmjax.data.source import Source
from mmjax.data.task import Task
from mmjax.data.texts import Texts
from mmjax.experiment import Experiment
from mmjax.modalities.audio import Audio
from mmjax.modalities.codes import Codes
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.structured import Boxes
from mmjax.modalities.text import Text
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.tokenizers.sentencepiece import SentencePiece
from mmjax.typing import Vocabulary

CAPTIONS = ("a red square", "a blue circle on the floor", "two birds fly away", "a red square\r\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes(Source):
    """Pictures as files, tones, captions that repeat, some of them several.

    Fields:
      broken: records whose pictures cannot be read. known: whether examples have an identity.
    """

    size: int = 40
    broken: tuple[int, ...] = ()
    known: bool = False

    def open(self, split):
        del split
        return [self._example(i) for i in range(self.size)]

    @functools.cache  # noqa: B019
    def _example(self, i: int) -> dict[str, Any]:
        rng = np.random.default_rng(i)
        picture = own.png(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8))
        text: Any = CAPTIONS[i % 4] if i % 5 else [CAPTIONS[1], CAPTIONS[2], " "]
        example = {"image": picture[:60] if i in self.broken else picture, "text": text}
        if i % 3:
            example["audio"] = rng.standard_normal(1600).astype(np.float32)
        return example | ({"identity": i // 2} if self.known else {})


@pytest.fixture(scope="module")
def modalities(tmp_path_factory) -> dict[str, Modality]:
    text = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=4), max_tokens=16)
    return {
        "image": Image(size=(8, 8), patch=4),
        "text": text.fit(lambda: CAPTIONS, tmp_path_factory.mktemp("augment") / "text"),
        "audio": Audio(seconds=0.1, num_mels=8),
    }


AUGMENT: dict[str, Augment] = {
    "image": Pictures(flip=0.5),
    "text": Texts(drop=0.4),
    "audio": Sounds(),
}


def task_of(source: Source, **fields) -> Task:
    given = {
        "source": source, "inputs": ("image", "text", "audio"), "layout": layouts.Aligned(),
        "objective": None, "batch_size": 16, "group_rows": 4, "augment": AUGMENT,
    }  # fmt: skip
    return Task(**given | fields)


def batches(modalities, tasks: dict[str, Task], groups=None, cache: int | None = None):
    vocabulary = Vocabulary(tuple(m.spec(n) for n, m in modalities.items()))
    readers = loader.readers(tasks, modalities, vocabulary, "train", 1.0)
    for reader in readers.values():
        reader.cache_bytes = reader.cache_bytes if cache is None else cache
    schedule = mixture.Mixture(period=10).bind(tasks, 0)
    return loader.Batches(schedule, mixture.Journal(), readers, vocabulary, 0, groups)


def same(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def values(batch, name: str) -> np.ndarray:
    view = batch.views[name]
    return view.ids_BL if name == "text" else view.values[name].value_BJP


def test_a_batch_depends_neither_on_caches_nor_on_what_was_read_before(modalities):
    tasks = {"t": task_of(Scenes())}
    one, two, three = (batches(modalities, tasks, cache=c) for c in (None, 0, 3000))
    later = [two[step][1] for step in (4, 1)]
    for step in range(5):
        same(one[step], three[step])
    for step, batch in zip((4, 1), later, strict=True):
        same(one[step][1], batch)


def test_the_rows_of_a_host_are_those_of_the_whole_batch(modalities):
    tasks = {"t": task_of(Scenes())}
    whole, part = batches(modalities, tasks), batches(modalities, tasks, {("t", "default"): [2, 0]})
    for step in range(4):
        rows = np.r_[8:12, 0:4]
        same(jax.tree.map(lambda x, rows=rows: x[rows], whole[step][1]), part[step][1])


def test_each_visit_of_a_record_is_another_and_each_task_has_its_own(modalities):
    source = Scenes(size=16)  # a batch is an epoch
    tasks = {"a": task_of(source), "b": task_of(source)}
    found = batches(modalities, tasks)
    seen: dict[str, dict[tuple, bytes]] = {name: {} for name in AUGMENT}
    for step in range(8):
        place, batch, _ = found[step]
        for row, (record, epoch) in enumerate(batch.sample_BSI[:, 0].tolist()):
            for name in ("image", "audio"):
                if name == "image" or record % 3:
                    seen[name][place.task, record, epoch] = values(batch, name)[row].tobytes()
    for name in ("image", "audio"):
        assert len(seen[name]) >= 80
        assert len(set(seen[name].values())) == len(seen[name])


def test_masks_order_and_streams_without_augmentation_stay_as_they_are(modalities):
    masked = {"layout": layouts.Masked(input_tokens=8, target_tokens=6), "targets": ("image",)}
    both = {"a": task_of(Scenes(), **masked), "b": task_of(Scenes())}
    plain = {name: dataclasses.replace(t, augment={}) for name, t in both.items()}
    found, wanted = batches(modalities, both), batches(modalities, plain)
    image = {"b": dataclasses.replace(both["b"], augment={"image": AUGMENT["image"]})}
    only, bare = (batches(modalities, t) for t in (image, {"b": plain["b"]}))
    for step in range(6):
        (place, a, _), (other, b, _) = found[step], wanted[step]
        assert place == other
        same(
            (a.sample_BSI, a.present_BSM, a.identity_BS),
            (b.sample_BSI, b.present_BSM, b.identity_BS),
        )
        (_, c, _), (_, d, _) = only[step], bare[step]
        same((c.views["text"], c.views["audio"]), (d.views["text"], d.views["audio"]))
        assert np.abs(values(c, "image") - values(d, "image")).max() > 0.1
    pictures = {"a": task_of(Scenes(), **masked, augment={"image": AUGMENT["image"]})}
    unvaried = {"a": dataclasses.replace(pictures["a"], augment={})}
    (_, a, _), (_, b, _) = (batches(modalities, t)[0] for t in (pictures, unvaried))
    same(a.views["input"]._replace(values=0), b.views["input"]._replace(values=0))
    same(a.targets["image"]._replace(value_WUP=0), b.targets["image"]._replace(value_WUP=0))


def test_several_captions_take_turns_while_their_words_are_left_out(modalities):
    source = Scenes(size=16)
    still = {"t": task_of(source, augment={})}
    varied = {"t": task_of(source, augment={"text": Texts(drop=1e-9)})}
    a, b = batches(modalities, still), batches(modalities, varied)
    for step in range(5):
        same(a[step][1], b[step][1])


def evaluated(modalities, tasks: dict[str, Task]) -> list:
    vocabulary = Vocabulary(tuple(m.spec(n) for n, m in modalities.items()))
    program: Any = types.SimpleNamespace(
        experiment=types.SimpleNamespace(
            tasks=tasks, modalities=modalities, seed=0,
            guards=types.SimpleNamespace(allowed_bad=0.1),
            data=types.SimpleNamespace(cache_bytes=1 << 20),
        ),
        vocabulary=vocabulary, folder=None, compiled={},
        batch_sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    )  # fmt: skip
    return list(loader.eval_batches(program, "t", "val"))


def test_evaluation_sees_what_is_given(modalities):
    one = evaluated(modalities, {"t": task_of(Scenes())})
    two = evaluated(modalities, {"t": task_of(Scenes(), augment={})})
    for a, b in zip(one, two, strict=True):
        same(a, b)


def test_a_bad_record_is_replaced_as_it_is_without_augmentation(modalities):
    source = Scenes(broken=(3, 11, 12))
    one = batches(modalities, {"t": task_of(source)})
    two = batches(modalities, {"t": task_of(source, augment={})})
    for step in range(5):
        (_, a, counts), (_, b, wanted) = one[step], two[step]
        same(a.sample_BSI, b.sample_BSI)
        bad = {n: v for n, v in counts.items() if n.startswith("bad/")}
        assert bad == {n: v for n, v in wanted.items() if n.startswith("bad/")}
        assert not set(a.sample_BSI[:, 0, 0].tolist()) & {3, 11, 12}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moody(Augment):
    """Encodes files itself, and fails at some visits."""

    share: float = 0.0

    def __call__(self, value, modality, rng):
        piece = modality.encode(value)
        if rng.random() < self.share:
            raise ZeroDivisionError("no mood")
        return piece


def test_an_augmentation_that_fails_is_named_and_no_record_is_blamed(modalities):
    source = Scenes(broken=(3,))
    calm = batches(modalities, {"t": task_of(source, augment={"image": Moody()})})
    plain = batches(modalities, {"t": task_of(source, augment={})})
    for step in range(5):
        same(calm[step], plain[step])  # a broken file is a bad record, whoever decodes it
    found = batches(modalities, {"t": task_of(source, augment={"image": Moody(share=0.2)})})
    said = r"augment\['image'\]=Moody failed on record \d+, .* ZeroDivisionError: no mood"
    with pytest.raises(errors.BadDataError, match=said):
        [found[step] for step in range(5)]


# ---- positives


def pairs_of(batch) -> set[frozenset[int]]:
    """Records that are positives of one another."""
    identity, record = batch.identity_BS[:, 0], batch.sample_BSI[:, 0, 0]
    rows = range(len(record))
    both = [(i, j) for i in rows for j in rows if i < j and identity[i] == identity[j]]
    return {frozenset((int(record[i]), int(record[j]))) for i, j in both}


@pytest.mark.parametrize("augment", [{}, AUGMENT])
def test_captions_that_repeat_make_positives(modalities, augment):
    """A trailing newline makes no other caption; of several captions that of the visit counts."""
    source = Scenes(size=16)
    batch = batches(modalities, {"t": task_of(source, augment=augment, positives_by="text")})[0][1]
    shown = batches(modalities, {"t": task_of(source, augment={})})[0][1]
    captions = dict(zip(
        shown.sample_BSI[:, 0, 0].tolist(), map(bytes, shown.views["text"].ids_BL), strict=True
    ))  # fmt: skip
    assert len(set(captions.values())) == 3  # CAPTIONS[0] and [3] are one
    wanted = {
        frozenset((i, j)) for i in captions for j in captions
        if i < j and captions[i] == captions[j]
    }  # fmt: skip
    assert pairs_of(batch) == wanted
    assert not pairs_of(shown)


def test_positives_are_found_by_a_stream_that_the_task_does_not_read_and_in_evaluation(modalities):
    source, both = Scenes(size=16), {"inputs": ("image", "audio"), "augment": {}}
    whole = task_of(source, augment={}, positives_by="text")
    part = task_of(source, **both, positives_by="text")
    a, b = (batches(modalities, {"t": t})[0][1] for t in (whole, part))
    same(a.identity_BS, b.identity_BS)
    assert set(b.views) == {"image", "audio"}
    (evaluation,) = evaluated(modalities, {"t": part})
    number = dict(zip(b.sample_BSI[:, 0, 0].tolist(), b.identity_BS[:, 0].tolist(), strict=True))
    seen = np.asarray(evaluation.identity_BS)[:, 0].tolist()
    assert all(seen[i] == number[i] for i in range(16) if i % 5)  # those of one caption


def test_an_identity_of_the_source_is_kept(modalities):
    batch = batches(modalities, {"t": task_of(Scenes(size=16, known=True), positives_by="text")})[
        0
    ][1]
    assert pairs_of(batch) == {frozenset((2 * i, 2 * i + 1)) for i in range(8)}


# ---- the config


def experiment(modalities, **fields) -> Experiment:
    given = {"objective": InfoNCE(), **fields}
    return Experiment(modalities=modalities, tasks={"pair": task_of(Scenes(), **given)})


WRONG: dict[str, tuple[dict, str]] = {
    "unknown": ({"augment": {"imag": Pictures()}}, "augment names 'imag', .*did you mean 'image'"),
    "unread": ({"augment": {"boxes": Moody()}}, "augment names 'boxes', which this task does not"),
    "kind": (
        {"augment": {"image": Texts()}},
        r"augment\['image'\]=Texts, but 'image' is of Image, and Texts is for Text; give one",
    ),
    "sound": ({"augment": {"text": Sounds()}}, "Sounds is for Audio"),
    "picture": ({"augment": {"audio": Pictures()}}, "Pictures is for Image"),
    "no_augment": ({"augment": {"image": 0.5}}, r"augment\['image'\] is a float, no Augment"),
    "like": (
        {"augment": {"image": Pictures(like="dept")}}, "like='dept' is not augmented here",
    ),
    "boxes": (
        {"inputs": ("image", "boxes"), "augment": {"image": Pictures()}},
        r"Pictures moves what 'boxes' says the place of; change colours alone: area=\(1.0, 1.0\)",
    ),
    "codes": (
        {"inputs": ("image", "codes"), "augment": {"codes": Pictures()}},
        "ids of 'codes' are computed once, before training",
    ),
    "text_target": (
        {"targets": ("text",), "objective": MaskedTokens(), "augment": {"text": Texts()}},
        "'text' is among the targets, so the model would learn to leave out words",
    ),
    "audio_target": (
        {"targets": ("audio",), "objective": MaskedTokens(), "augment": {"audio": Sounds()}},
        "set noise=0.0, time_masks=0 and band_masks=0 here",
    ),
    "positives": ({"positives_by": "txt"}, "positives_by='txt' is not in modalities; did you mean"),
    "offline": ({"positives_by": "codes"}, "name the modality of the values"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_with_a_remedy(modalities, name):
    fields, said = WRONG[name]
    codes = {"codes": Codes(base=toy_codes.BASE), "boxes": Boxes(max_boxes=2)}
    masked = layouts.Masked(input_tokens=8, target_tokens=6)
    layout = {"layout": masked} if "targets" in fields else {}
    with pytest.raises(ValueError, match=f"^Task 'pair': .*{said}"):
        experiment(modalities | codes, **layout, **{"augment": {}} | fields)


def test_what_does_not_lie_is_accepted(modalities):
    still = functools.partial(Pictures, area=(1, 1), aspect=(1, 1))
    more = modalities | {"boxes": Boxes(max_boxes=2)}
    experiment(more, inputs=("image", "boxes"), augment={"image": still()})
    masked = layouts.Masked(input_tokens=8, target_tokens=6)
    quiet = Sounds(noise=0.0, time_masks=0, band_masks=0)
    experiment(
        modalities, targets=("audio", "image"), objective=MaskedTokens(), layout=masked,
        augment={"audio": quiet, "image": Pictures()},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"Pictures: area=\(0.9, 0.5\) ends before it starts"):
        Pictures(area=(0.9, 0.5))
    with pytest.raises(ValueError, match=r"Sounds: snr=\(20.0, 0.0\) ends before it starts"):
        Sounds(snr=(20.0, 0.0))


def test_a_run_without_augmentation_keeps_the_identity_of_older_ones(modalities):
    plain, varied = experiment(modalities, augment={}), experiment(modalities)
    assert not [p for p in config.identity(plain, "data") if "augment" in p or "positives" in p]
    changed = config.identity(varied, "data")
    assert changed["tasks.pair.augment.image.flip"] == 0.5
    assert config.identity(experiment(modalities, augment={}, positives_by="text"), "data")[
        "tasks.pair.positives_by"
    ] == "text"  # fmt: skip


def test_the_config_is_written_read_and_set_by_paths(modalities):
    given = experiment({n: m for n, m in modalities.items() if n != "text"} | {"text": Text()})
    tree = config.to_json(given)
    back = config.from_json(tree, config.seam_classes(of=given), Experiment)
    assert back.tasks["pair"].augment == AUGMENT
    changed = config.override(given, ["--tasks.pair.augment.image.flip", "0.25"])
    assert changed.tasks["pair"].augment["image"] == Pictures(flip=0.25)
    with pytest.raises(config.ConfigError, match="must be a number from 0 to 1"):
        config.override(given, ["--tasks.pair.augment.image.flip", "1.25"])
