"""The artefact of a learned tokenizer: round trip, fingerprints, damage."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import toy_codes

from mmjax.modalities.audio import Audio
from mmjax.modalities.codes import Codes
from mmjax.modalities.segmentation import Segmentation
from mmjax.models import FSQ, VQ, Autoencoder
from mmjax.objectives import Reconstruction
from mmjax.tokenizers import learned as learned_lib
from mmjax.tokenizers.learned import Learned


@pytest.fixture
def pieces() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (5, 8, 16)).astype(np.float32)


@pytest.mark.parametrize("kind", toy_codes.QUANTIZERS)
def test_what_is_written_reads_back_and_codes_alike(kind, pieces, tmp_path):
    learned = toy_codes.learned(kind)
    learned.write(tmp_path)
    back = Learned.read(tmp_path)
    assert back.fingerprints == learned.fingerprints
    assert (back.model, back.spec) == (learned.model, learned.spec)
    ids_NL = learned.encode(pieces)
    assert ids_NL.shape == (5, learned.model.num_tokens)
    assert 0 <= ids_NL.min() < ids_NL.max() < learned.vocab_size
    for other in (back, pickle.loads(pickle.dumps(learned))):
        np.testing.assert_array_equal(other.encode(pieces), ids_NL)
        np.testing.assert_array_equal(other.decode(ids_NL), learned.decode(ids_NL))
    assert learned.decode(ids_NL).shape == pieces.shape


@pytest.mark.parametrize("kind", ["residual", "product"])
@pytest.mark.parametrize(
    ("base", "sizes", "grid"),
    [
        (toy_codes.BASE, {}, (-1, 2, 8)),
        (Audio(seconds=0.32, num_mels=5), {"piece": (4, 1, 5), "code_grid": (8, 1)}, (8, -1, 1)),
    ],
)
def test_codebooks_lie_along_the_free_axis_of_the_grid(kind, base, sizes, grid):
    model = toy_codes.model(kind, **sizes)
    learned, codebooks = toy_codes.of(base, model), model.quantizer.num_codebooks
    assert learned.grid == tuple(codebooks if size < 0 else size for size in grid)
    spec = learned.spec
    values = np.random.default_rng(0).normal(size=(2, spec.max_tokens, spec.width))
    ids = learned.encode(values)
    of = np.moveaxis(ids.reshape(2, *learned.grid) // 10, 1 + grid.index(-1), 0)
    assert all((of[q] == q).all() for q in range(codebooks))
    # An id at the place of another codebook decodes as the same code of the one that is there.
    moved = (ids + 10) % learned.vocab_size
    np.testing.assert_array_equal(learned.decode(moved), learned.decode(ids))


def test_one_value_many_and_none_are_coded_alike(pieces):
    learned = toy_codes.learned()
    many = learned.encode(np.tile(pieces, (60, 1, 1)))  # more than one batch
    np.testing.assert_array_equal(many, np.tile(learned.encode(pieces), (60, 1)))
    np.testing.assert_array_equal(learned.encode(pieces[:1]), many[:1])
    assert learned.encode(pieces[:0]).shape == (0, 16)


@pytest.mark.parametrize(
    ("kind", "codes", "decoder"),
    [("fsq", "3ae4e904c28a", "89ef1606d154"), ("vq", "4fcdf6703b73", "27829de6e5a9")],
)
def test_tokenizers_keep_their_fingerprints_as_models_gain_fields(kind, codes, decoder):
    """Those of format 1: a new field of a model belongs into `learned.LATER`."""
    learned = toy_codes.learned(kind)
    tensors = {name: np.full(x.shape, 0.5, np.float32) for name, x in learned.tensors.items()}
    found = dataclasses.replace(learned, tensors=tensors).fingerprints
    assert {name: text[:12] for name, text in found.items()} == {"codes": codes, "decoder": decoder}


def test_each_fingerprint_is_of_its_own_half():
    one = toy_codes.learned()

    def changed(part: str) -> Learned:
        name = next(n for n in one.tensors if n.startswith(part))
        return dataclasses.replace(one, tensors={**one.tensors, name: one.tensors[name] + 1e-3})

    def same(other: Learned) -> tuple[bool, bool]:
        pairs = [(one.fingerprints[k], other.fingerprints[k]) for k in ("codes", "decoder")]
        return pairs[0][0] == pairs[0][1], pairs[1][0] == pairs[1][1]

    assert same(changed("decoder/")) == (True, False)
    assert same(changed("encoder/")) == (False, True)
    blurred = {**one.preprocessing, "mean": [0.4]}
    assert same(dataclasses.replace(one, preprocessing=blurred)) == (False, False)
    renamed = {**one.preprocessing, "field": "picture"}  # no id depends on the name of a field
    assert same(dataclasses.replace(one, preprocessing=renamed, parent={"step": 3})) == (True, True)


def test_codes_of_sounds_are_of_the_whole_length(tmp_path):
    """A shorter sound is coded as if silence followed it."""
    base = toy_codes.base("strided")
    toy_codes.write(tmp_path, "strided")
    codes = Codes(base=base, path=str(tmp_path)).fit(lambda: iter(()), tmp_path / "own")
    sound = np.random.default_rng(0).normal(size=128).astype(np.float32)
    short, padded = sound[:40], np.where(np.arange(128) < 40, sound, 0).astype(np.float32)
    ids = codes.encode_batch([sound, short])
    assert ids.shape == (2, 32)
    np.testing.assert_array_equal(codes.encode(short).ids_L, ids[1])
    np.testing.assert_array_equal(codes.encode(padded).ids_L, ids[1])
    assert codes.spec("codes").grid == (16, 2, 1)
    assert codes.decode(codes.encode(short)).shape == (128,)


def test_values_of_many_numbers_are_coded_a_few_at_a_time(monkeypatch, pieces):
    whole = toy_codes.of(toy_codes.BASE, toy_codes.model()).encode(pieces)
    monkeypatch.setattr(learned_lib, "ROOM", 300)  # two images
    few, seen = toy_codes.of(toy_codes.BASE, toy_codes.model()), []
    run = few._functions["codes"]
    few._functions["codes"] = lambda arrays, x: seen.append(len(x)) or run(arrays, x)
    np.testing.assert_array_equal(few.encode(pieces), whole)
    assert seen == [2, 2, 2]


def test_ids_of_another_tokenizer_are_refused():
    learned = toy_codes.learned()
    with pytest.raises(ValueError, match=r"ids 36\.\.36 are outside 0\.\.35; they belong"):
        learned.decode(np.full((1, 16), 36))
    with pytest.raises(ValueError, match="not of 16 codes a value"):
        learned.decode(np.zeros((1, 8), np.int32))


def test_damage_is_found(tmp_path):
    learned = toy_codes.learned()
    learned.write(tmp_path)
    content = bytearray((tmp_path / "weights.safetensors").read_bytes())
    content[-3] ^= 64
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: its content has fingerprint .*copy it"):
        Learned.read(tmp_path)
    learned.write(tmp_path)
    manifest = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**manifest, "format": 9}))
    with pytest.raises(ValueError, match=r"format=9, this version reads 1"):
        Learned.read(tmp_path)


def test_maps_of_ids_are_coded_too(tmp_path):
    """Ids in, codes, ids out; alike for a tokenizer that was read again."""
    base = Segmentation(names=("sky", "sea", "sand"), size=(8, 16), cell=1, ignore=-1)
    learned = toy_codes.of(base, toy_codes.model(piece=(1, 1, 3)))
    maps = np.random.default_rng(0).integers(0, 3, (5, 8, 16))
    learned.write(tmp_path / "tokenizer")
    codes = Codes(base=base, path=str(tmp_path), field="image").fit(
        lambda: iter(()), tmp_path / "own"
    )
    ids_NL = codes.encode_batch(list(maps))
    assert ids_NL.shape == (5, 16)
    np.testing.assert_array_equal(ids_NL, learned.encode(maps.reshape(5, -1)))
    np.testing.assert_array_equal(codes.encode(maps[0]).ids_L, ids_NL[0])
    back = codes.decode_batch(ids_NL)
    assert {x.shape for x in back} == {(8, 16)}
    assert np.isin(back, (0, 1, 2)).all()
    with pytest.raises(ValueError, match=r"piece=\(1, 1, 4\), but a token .* use \(1, 1, 3\)"):
        toy_codes.of(base, toy_codes.model(piece=(1, 1, 4)))


def test_what_came_later_does_not_change_the_identity_of_a_run():
    """As it keeps fingerprints, it keeps the runs that train tokenizers: they resume."""
    released = {"num_heads", "symmetric", "gradient", "kmeans_steps"}  # runs have recorded them
    found = {
        field.name: field.metadata.get("is_new")
        for kind in (Autoencoder, FSQ, VQ, Reconstruction)
        for field in dataclasses.fields(kind)
        if field.name in learned_lib.LATER or field.name.startswith(("spectral", "adversarial"))
    }
    assert set(found) >= set(learned_lib.LATER)
    assert {name for name, is_new in found.items() if not is_new} == released
