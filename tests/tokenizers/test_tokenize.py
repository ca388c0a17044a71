"""Raw shards to tokens: the same batches as raw data, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import commands
import killing
import numpy as np
import pytest
import toy_codes
import toy_set

from mmjax import errors, files
from mmjax.config.error import ConfigError
from mmjax.data import loader, started, token_set
from mmjax.data.reader import Reader
from mmjax.data.source import BadRecord
from mmjax.data.token_set import TokenSet
from mmjax.tokenize import job, run, shard, whole
from mmjax.tokenizers.learned import Learned
from mmjax.train import train
from mmjax.typing import Piece, TokenSpec

CONFIG = Path(toy_set.__file__)


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    return toy_set.write_tars(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def codes(tmp_path_factory) -> str:
    return toy_codes.write(tmp_path_factory.mktemp("codes"))


@pytest.fixture(scope="session")
def made(raw, codes, tmp_path_factory) -> Path:
    """A whole set, that no test changes."""
    out = tmp_path_factory.mktemp("made") / "tokens"
    run.tokenize(toy_set.get_config(str(raw), codes), out)
    return out


def test_one_input_shard_is_one_unit_and_large_ones_are_cut(raw, codes, tmp_path):
    experiment = toy_set.get_config(str(raw), codes)
    made = job.make(experiment, tmp_path / "a")
    records = experiment.tasks["masked"].source.open("train")
    files_of = [records.key(i).partition("/")[0] for i in range(len(records))]
    for unit in made.units():
        if unit.split == "train":
            assert len(set(files_of[unit.start : unit.stop])) == 1
    assert len(made.ends["train"]) == 3
    assert sum(u.stop - u.start for u in made.units()) == 60
    small = job.make(experiment, tmp_path / "b", shard_examples=7)
    assert max(u.stop - u.start for u in small.units()) <= 7
    assert sum(u.stop - u.start for u in small.units()) == 60


def test_an_empty_split_stays_empty(codes, tmp_path):
    raw = toy_set.write_tars(tmp_path / "raw", shards=1, each=8)
    experiment = toy_set.get_config(str(raw), codes)
    sizes = {s: len(experiment.tasks["masked"].source.open(s)) for s in ("train", "val")}
    assert sizes["val"] == 0
    run.tokenize(experiment, tmp_path / "out")
    held = TokenSet(path=str(tmp_path / "out"))
    assert {split: len(held.open(split)) for split in held.splits()} == sizes


def test_a_set_holds_the_pieces_of_the_raw_source(raw, codes, made, tmp_path):
    experiment = toy_set.get_config(str(raw), codes)
    ready = job.make(experiment, tmp_path / "x")
    raw_reader = Reader(
        source=ready.source, split="train", modalities=ready.experiment.modalities,
        vocabulary=ready.vocabulary,
    )  # fmt: skip
    held = TokenSet(path=str(made))
    reader = dataclasses.replace(raw_reader, source=held)
    assert len(reader) == len(raw_reader) > 40
    for i in range(len(reader)):
        want, have = (r.read(i, ready.streams) for r in (raw_reader, reader))
        assert want.identity == have.identity
        for name in ready.streams:
            for x, y in zip(want.pieces[name], have.pieces[name], strict=True):
                np.testing.assert_array_equal(x, y)
    assert held.open("train").key(3) == ready.source.open("train").key(3)
    assert held.held()["tok_image"].spec.fingerprint == toy_codes.learned().fingerprints["codes"]


@pytest.mark.ci
def test_training_on_tokens_is_training_on_raw_data_bit_for_bit(raw, codes, made, tmp_path):
    logs = []
    for name, tokens in (("raw", ""), ("tokens", str(made))):
        result = train(toy_set.get_config(str(raw), codes, tokens), tmp_path / name)
        rows = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logs.append([(r["step"], r.get("loss")) for r in rows])
        logs.append(result.step)
    assert logs[:2] == logs[2:]
    # The run has a copy of the tokenizers of the set, so that it needs neither data nor set.
    names = sorted(p.name for p in (tmp_path / "tokens" / "tokenizers").iterdir())
    assert names == sorted(p.name for p in (made / "tokenizers").iterdir())


def test_again_does_nothing_and_damage_is_made_good(raw, codes, made, tmp_path):
    out, experiment = tmp_path / "out", toy_set.get_config(str(raw), codes)
    run.tokenize(experiment, out)
    assert killing.same_files(out, made)
    paths = sorted((out / "tokens" / "train").glob("*.array_record"))
    stamps = [p.stat().st_mtime_ns for p in paths]
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    paths[1].with_name("00001.json").unlink()
    report = whole.status(out)
    assert not report["finished"]
    assert report["parts"]["tokens"]["damaged"] == ["train/00000.array_record"]
    with pytest.raises(ValueError, match=r"00000.array_record has 1000 bytes.*cut"):
        TokenSet(path=str(out)).open("train")
    with pytest.raises(errors.CheckFailed, match="2 of 5 shards are missing"):
        whole.finalize(out)
    run.tokenize(experiment, out)
    assert killing.same_files(out, made)
    assert [p.stat().st_mtime_ns for p in paths][2:] == stamps[2:]


def test_a_changed_byte_is_found_by_hashes(raw, codes, tmp_path):
    out = tmp_path / "out"
    run.tokenize(toy_set.get_config(str(raw), codes), out)
    path = out / "tokens" / "val" / "00000.array_record"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    assert whole.status(out)["finished"]
    assert whole.status(out, verify=True)["parts"]["tokens"]["damaged"]


def test_an_unfinished_set_trains_nothing(raw, codes, tmp_path):
    out = tmp_path / "out"
    made = run.begin(toy_set.get_config(str(raw), codes), files.given(out))
    run.unit(made, made.units()[0])
    with pytest.raises(ValueError, match="is not finished; run the same mmjax tokenize again"):
        TokenSet(path=str(out)).splits()
    with pytest.raises(ValueError, match="holds no tokens; mmjax tokenize makes them"):
        TokenSet(path=str(tmp_path / "other")).splits()


def test_another_job_in_the_same_folder_is_refused(raw, codes, made, tmp_path):
    other = toy_codes.write(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="splits differ"):
        run.tokenize(toy_set.get_config(str(raw), codes), made, shard_examples=5)
    more = toy_set.write_tars(tmp_path / "more", shards=2)
    with pytest.raises(ConfigError, match=r"another job .source, splits differ"):
        run.tokenize(toy_set.get_config(str(more), codes), made)
    # The tokenizer that a set was begun with stays its own; the config's is another.
    out = tmp_path / "out"
    run.tokenize(toy_set.get_config(str(raw), codes), out)
    config = toy_set.get_config(str(raw), other)
    found = next((out / "tokenizers").glob("tok_image@*"))
    Learned.read(Path(other) / "tokenizer").write(found)
    with pytest.raises(ConfigError, match=r"tokenizer of 'tok_image' is .*, there "):
        run.tokenize(config, out)


def test_a_config_that_names_another_tokenizer_than_the_folder_has_is_refused(
    raw, codes, made, tmp_path
):
    other = toy_codes.write(tmp_path / "other", seed=1)
    own, its = (toy_codes.learned("fsq", seed).fingerprints["codes"][:12] for seed in (0, 1))
    with pytest.raises(
        ConfigError, match=rf"tokenizer of 'tok_image' is {own}, but .* names {its}"
    ):
        run.tokenize(toy_set.get_config(str(raw), other), made)
    # Where the tokenizer lies is of no account.
    moved = toy_codes.write(tmp_path / "moved")
    run.tokenize(toy_set.get_config(str(raw), moved), made)


def test_tokens_of_another_tokenizer_are_refused_with_both_fingerprints(raw, codes, made, tmp_path):
    other = toy_codes.write(tmp_path / "other", seed=1)
    config = toy_set.get_config(str(raw), other, str(made))
    own, its = (toy_codes.learned("fsq", seed).fingerprints["codes"][:12] for seed in (0, 1))
    with pytest.raises(ConfigError, match=f"made by tokenizer {own}, but .* names {its}"):
        train(config, tmp_path / "run")
    # A workdir that has another one already, as that of a run on other tokens has.
    ready = job.make(toy_set.get_config(str(raw), other), tmp_path / "x")
    task = config.tasks["masked"]
    with pytest.raises(ValueError, match=f"made by tokenizer {own}, but that of the run is {its}"):
        loader.readers(
            {"masked": task}, ready.experiment.modalities, ready.vocabulary, "train", 0.0
        )


def test_bad_records_keep_their_places_and_reasons(codes, tmp_path):
    raw = toy_set.write_tars(tmp_path / "raw", bad=(7,))
    out, experiment = tmp_path / "out", toy_set.get_config(str(raw), codes)
    run.tokenize(experiment, out)
    about = whole.status(out)["parts"]["tokens"]
    assert sum(about["rejected"].values()) == 1
    source, held = experiment.tasks["masked"].source, TokenSet(path=str(out))
    bad = []
    for split in source.splits():
        records = held.open(split)
        assert len(records) == len(source.open(split))
        for i in range(len(records)):
            try:
                records[i]
            except BadRecord as error:
                bad.append((records.key(i), error.reason))
    assert [key for key, _ in bad] == ["00000.tar/000007"]
    assert set(about["rejected"]) == {bad[0][1]}


def test_too_many_bad_records_end_it_with_reasons_and_keys(codes, tmp_path):
    raw = toy_set.write_tars(tmp_path / "raw", bad=tuple(range(5, 25)))
    with pytest.raises(errors.BadDataError, match=r"20 of 60 records .*000005"):
        run.tokenize(toy_set.get_config(str(raw), codes), tmp_path / "out")
    assert not (tmp_path / "out" / "tokens.json").exists()


def test_a_shard_that_fails_every_time_is_named_and_the_others_are_done(
    raw, codes, made, tmp_path, monkeypatch
):
    out, experiment = tmp_path / "out", toy_set.get_config(str(raw), codes)
    right = shard.make

    def fails(made, unit):
        if (unit.split, unit.number) == ("train", 1):
            raise RuntimeError("the second file breaks the decoder")
        return right(made, unit)

    monkeypatch.setattr(shard, "make", fails)
    for attempts in (2, 4):
        with pytest.raises(
            errors.CheckFailed, match=f"after {attempts} attempts: RuntimeError: the"
        ):
            run.tokenize(experiment, out)
    about = whole.status(out)["parts"]["tokens"]
    assert about["done"] == about["shards"] - 1
    assert list(about["failed"]) == ["train/00001.array_record"]
    monkeypatch.setattr(shard, "make", right)
    run.tokenize(experiment, out)
    assert killing.same_files(out, made)


def test_a_full_disk_ends_it_at_once_and_leaves_no_half(raw, codes, made, tmp_path, monkeypatch):
    out, experiment = tmp_path / "out", toy_set.get_config(str(raw), codes)
    tries = []

    def full(path, *args):
        tries.append(path)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(shard.array_records, "write_records", full)
    with pytest.raises(OSError, match="No space left"):
        run.tokenize(experiment, out)
    assert len(tries) == 1
    monkeypatch.undo()
    assert not list(out.rglob("*.partial"))
    run.tokenize(experiment, out)
    assert killing.same_files(out, made)


def test_what_reads_back_otherwise_is_no_shard(raw, codes, tmp_path, monkeypatch):
    monkeypatch.setattr(shard.array_records.ArrayFile, "raw", lambda self, row: b"{}\n")
    with pytest.raises(errors.StorageError, match="is not what was written"):
        run.tokenize(toy_set.get_config(str(raw), codes), tmp_path / "out")


def test_a_further_part_has_the_same_records(raw, codes, tmp_path):
    out, experiment = tmp_path / "out", toy_set.get_config(str(raw), codes)
    without = {n: dataclasses.replace(t, inputs=("text",), targets=("text",))
               for n, t in experiment.tasks.items() if n == "masked"}  # fmt: skip
    first = dataclasses.replace(experiment, tasks=without)
    with pytest.raises(ConfigError, match="holds no tokens yet"):
        run.tokenize(first, out, add=("tok_image",))
    run.tokenize(first, out)
    assert set(TokenSet(path=str(out)).held()) == {"text"}
    with pytest.raises(ConfigError, match="holds it already"):
        run.tokenize(first, out, add=("text",))
    with pytest.raises(ConfigError, match="'tok_imag' is no modality"):
        run.tokenize(first, out, add=("tok_imag",))
    run.tokenize(first, out, add=("tok_image",))
    held = TokenSet(path=str(out))
    assert set(held.held()) == {"text", "tok_image"}
    example = held.open("train")[5][token_set.HELD]
    raw_values = experiment.tasks["masked"].source.open("train")[5]
    ready = experiment.modalities["tok_image"].fit(lambda: iter(()), out / "none")
    np.testing.assert_array_equal(
        example["tok_image"][0].ids_L, ready.encode(raw_values["image"]).ids_L
    )


def test_crops_are_drawn_once_and_shared_by_what_is_alike(raw, codes, tmp_path):
    with started.tokenizing():
        experiment = toy_set.cropped(str(raw), codes)
    with pytest.raises(ConfigError, match="say how many variations"):
        run.tokenize(experiment, tmp_path / "out")
    with pytest.raises(ConfigError, match="the task augments nothing"):
        run.tokenize(toy_set.get_config(str(raw), codes), tmp_path / "out", crops=3)
    for name in ("out", "again"):
        run.tokenize(experiment, tmp_path / name, crops=3)
    assert killing.same_files(tmp_path / "out", tmp_path / "again")
    held = TokenSet(path=str(tmp_path / "out"))
    ready = experiment.modalities["tok_image"].fit(lambda: iter(()), tmp_path / "none")
    varied = 0
    for i in range(8):
        pieces = held.open("train")[i][token_set.HELD]
        assert [len(pieces[n]) for n in ("image", "text", "tok_image")] == [3, 1, 3]
        for image, ids in zip(pieces["image"], pieces["tok_image"], strict=True):
            np.testing.assert_array_equal(ready.encode_pieces([image])[0].ids_L, ids.ids_L)
        varied += not np.array_equal(pieces["image"][0].values_LP, pieces["image"][1].values_LP)
        assert len(held.open("val")[0][token_set.HELD]["image"]) == 1
    assert varied >= 7


@pytest.mark.parametrize("vocab_size", [2, 256, 257, 70_000])
def test_ids_are_kept_in_the_smallest_type(vocab_size):
    spec = TokenSpec(name="x", kind="sequence", max_tokens=9, vocab_size=vocab_size)
    rng = np.random.default_rng(0)
    pieces = [
        Piece(token_set.positions(n), ids_L=rng.integers(0, vocab_size, n, np.int32), num_cut=n)
        for n in (1, 9, 4)
    ]
    pieces.append(Piece(token_set.positions(2) + np.float32(0.5), ids_L=np.zeros(2, np.int32)))
    notes, content = token_set.packed(pieces, spec)
    size = {2: 1, 256: 1, 257: 2, 70_000: 4}[vocab_size]
    assert len(content) == 16 * size + 2 * 3 * 4
    values = {"tokens": {"x": notes}, "x": content}
    for a, b in zip(pieces, token_set.unpacked(values, {"x": spec})["x"], strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    with pytest.raises(BadRecord):
        token_set.unpacked({**values, "x": content[:-1]}, {"x": spec})


def test_a_later_format_and_a_damaged_manifest_are_refused(made, tmp_path):
    manifest = json.loads((made / "tokens.json").read_text())
    for text, say in (("{", "damaged"), (json.dumps({**manifest, "format": 9}), "format=9")):
        folder = tmp_path / say
        folder.mkdir()
        (folder / "tokens.json").write_text(text)
        with pytest.raises(ValueError, match=say):
            TokenSet(path=str(folder)).splits()


# ------------------------------------------------------------------------------ commands


@pytest.mark.ci
def test_the_command_with_two_processes_gives_the_same_bytes(raw, codes, made, tmp_path):
    out = tmp_path / "out"
    env = {"RAW": str(raw), "CODES": codes}
    done = commands.run("tokenize", str(CONFIG), "--out", str(out), "--workers", "2", **env)
    assert done.returncode == 0, done.stderr
    assert "tok_image" in done.stdout
    assert killing.same_files(out, made)
    status = commands.run("tokenize", "status", str(out), "--json", "--verify")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["finished"]
    none = commands.run("tokenize", "status", str(tmp_path))
    assert none.returncode == 2
    assert "holds no tokens" in none.stderr
    again = commands.run("tokenize", "finalize", str(out))
    assert again.returncode == 0, again.stderr
    assert killing.same_files(out, made)


@pytest.mark.parametrize(
    "times",
    [pytest.param(3, marks=pytest.mark.ci), pytest.param(20, marks=pytest.mark.nightly)],
)
@pytest.mark.timeout(900)
def test_killed_at_random_and_run_again_gives_the_same_bytes(raw, codes, tmp_path, times):
    """With shards of two records there are thirty of them to be killed between."""
    how = ("--shard-examples", "2", "--workers", "2")
    run.tokenize(toy_set.get_config(str(raw), codes), tmp_path / "whole", shard_examples=2)
    out = tmp_path / "out"
    killing.at_random(killing.command(raw, codes, out, *how), out, times, seed=times)
    assert not whole.status(out)["parts"]["tokens"]["missing"]
    assert killing.same_files(out, tmp_path / "whole")
