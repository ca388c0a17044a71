"""Joined: tar files of one modality each, as 4M lays out its data, read as one source."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle

import numpy as np
import own
import pytest
import webdataset

import mmjax
from mmjax import config, console
from mmjax.config import ConfigError
from mmjax.data import index
from mmjax.data.folder import Folder
from mmjax.data.joined import Joined
from mmjax.data.parquet import Parquet
from mmjax.data.source import BadRecord
from mmjax.data.webdataset import WebDataset
from mmjax.demo.numbers import Numbers

FIELDS = {"rgb": "png", "caption": "txt", "tok_depth": "npy"}
SHARDS, EACH = 3, 16


@pytest.fixture(autouse=True)
def _said_anew(tmp_path, monkeypatch):
    console.say_once.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# Values of each record, by modality; each says which record it is of.
ROWS = [
    {
        "rgb": row["image"],
        "caption": row["text"].encode(),
        "tok_depth": npy(np.full((4, 4), i % 8, np.int16)),
    }
    for i, row in enumerate(own.records(count=SHARDS * EACH, size=16, audio=False))
]


def write(root, without=lambda modality, i: False, turned=()):
    """`root/{rgb,caption,tok_depth}/00000.tar` by the writer of the package webdataset."""
    for name, ending in FIELDS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for shard in range(SHARDS):
            numbers = list(range(shard * EACH, (shard + 1) * EACH))
            with webdataset.TarWriter(str(root / name / f"{shard:05}.tar")) as tar:
                for i in reversed(numbers) if name in turned else numbers:
                    if not without(name, i):
                        tar.write({"__key__": f"{i:06}", ending: ROWS[i][name]})


def parts(root, names=tuple(FIELDS), **fields):
    return {
        name: WebDataset(path=f"{root}/{name}/*.tar", fields={name: FIELDS[name]}, **fields)
        for name in names
    }


def joined(root, **fields):
    return Joined(parts=parts(root, **fields))


def numbers(records):
    """The number of each record, once each of its values says the same."""
    found = []
    for i in range(len(records)):
        example = records[i]
        number = int(example["caption"].rpartition(b" ")[2])
        assert example["rgb"] == ROWS[number]["rgb"]
        assert (example["tok_depth"] == number % 8).all()
        found.append(number)
    return found


def test_the_layout_of_4m_is_read_as_records_of_all_modalities(tmp_path, capsys):
    write(tmp_path)
    source = joined(tmp_path)
    assert source.splits() == ("train", "val")
    assert source.keys() == ("rgb", "caption", "tok_depth")
    opened = {split: source.open(split) for split in source.splits()}
    found = {split: numbers(records) for split, records in opened.items()}
    assert sorted(found["train"] + found["val"]) == list(range(SHARDS * EACH))
    assert min(map(len, found.values())) > 0  # the parts' shares divide them alike
    assert "left out" not in capsys.readouterr().err
    assert opened["train"].key(0) == f"00000.tar/{found['train'][0]:06}"
    with pytest.raises(IndexError):
        opened["train"][len(opened["train"])]
    again = pickle.loads(pickle.dumps(source)).open("val")
    assert numbers(again) == found["val"]
    assert numbers(pickle.loads(pickle.dumps(opened["val"]))) == found["val"]
    assert config.from_json(json.loads(config.dump(source)), config.seam_classes()) == source


def test_records_without_partner_are_left_out_and_told(tmp_path, capsys):
    lacking = {"rgb": {3}, "caption": {5, 7, 20}, "tok_depth": {7, 40}}
    write(tmp_path, lambda name, i: i in lacking[name], turned=("caption",))
    source = joined(tmp_path)
    found = numbers(source.open("train")) + numbers(source.open("val"))
    assert sorted(found) == [i for i in range(SHARDS * EACH) if i not in {3, 5, 7, 20, 40}]
    said = capsys.readouterr().err
    count = sum(len(source.parts["rgb"].open(split)) for split in source.splits())
    assert count == SHARDS * EACH - 1
    assert "other parts lack them" in said
    assert len(source.open("train")) < len(found)
    assert "left out" not in capsys.readouterr().err  # once
    whole = joined(tmp_path, shares={"train": 1.0}, cache=str(tmp_path / "index"))
    order = numbers(whole.open("train"))
    assert order == sorted(order)  # of the first part, not of the one that is turned
    assert (
        "Joined, split 'train': 43 records; left out, as other parts lack them: 4 of 47 of 'rgb',"
        " 2 of 45 of 'caption', 3 of 46 of 'tok_depth'" in capsys.readouterr().err
    )


def test_keys_are_read_once(tmp_path, monkeypatch):
    write(tmp_path, lambda name, i: name == "rgb" and i == 3)
    source = joined(tmp_path)
    first = numbers(source.open("train"))
    with monkeypatch.context() as patch:
        patch.setattr("mmjax.data.joined._hashes", lambda *a: pytest.fail("read again"))
        assert numbers(source.open("train")) == first
    (kept,) = (tmp_path / "rgb" / index.BESIDE).glob("joined-*.npz")
    with np.load(kept) as file:
        arrays = dict(file)
    for name, column in {"rows.rgb": arrays["rows.rgb"][:-1], "rows.caption": -1,
                         "rows.tok_depth": 0}.items():  # fmt: skip
        np.savez(kept, **arrays | {name: column * np.ones_like(arrays[name])
                                   if isinstance(column, int) else column})  # fmt: skip
        assert numbers(source.open("train")) == first  # what cannot be right is made again
    write(tmp_path, lambda name, i: name == "rgb" and i == 5)
    assert 3 in numbers(source.open("train")) + numbers(source.open("val"))


def test_names_alone_join_where_the_key_says_so(tmp_path):
    """Parts of another format, in other files, with rows in another order."""
    write(tmp_path)
    captions = [{"id": f"{i:06}", "text": r["caption"].decode(), "audio": None, "image": r["rgb"],
                 "group": 0} for i, r in enumerate(ROWS)][::-1]  # fmt: skip
    own.write_parquet(tmp_path / "all.parquet", captions)
    tars = parts(tmp_path, ("rgb", "tok_depth"), key="__key__")
    table = Parquet(path=f"{tmp_path}/all.parquet", fields={"caption": "text"}, key="id")
    source = Joined(parts={**tars, "caption": table})
    found = {}
    for split in source.splits():
        records = source.open(split)
        found[split] = [int(records.key(i)[-6:]) for i in range(len(records))]
        for i, number in enumerate(found[split]):
            assert records[i]["caption"] == ROWS[number]["caption"]
            assert (records[i]["tok_depth"] == number % 8).all()
    assert sorted(found["train"] + found["val"]) == list(range(SHARDS * EACH))
    nameless = Joined(parts={**tars, "caption": dataclasses.replace(table, key="")})
    with pytest.raises(ValueError, match=r"part 'caption': Parquet: key='', but .* set key"):
        nameless.open("train")
    other = Joined(parts={**tars, "caption": parts(tmp_path)["caption"]})
    with pytest.raises(
        ValueError, match=r"no key is in all parts; .*'00000.tar/0000\d\d' of 'rgb'"
    ):
        other.open("train")


def test_folders_of_one_modality_each(tmp_path):
    for name, ending in (("rgb", "png"), ("caption", "txt")):
        for i in range(20):
            place = tmp_path / name / f"folder_{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.{ending}").write_bytes(ROWS[i][name])
    source = Joined(
        parts={
            name: Folder(path=f"{tmp_path}/{name}", fields={name: FIELDS[name]}, key="__key__")
            for name in ("rgb", "caption")
        }
    )
    records = source.open("train")
    assert 10 < len(records) < 20
    for i in range(len(records)):
        number = int(records[i]["caption"].rpartition(b" ")[2])
        assert records[i]["rgb"] == ROWS[number]["rgb"]


def test_a_record_is_bad_where_a_part_is(tmp_path):
    write(tmp_path)
    for path in (tmp_path / "tok_depth").glob("*.tar"):
        with webdataset.TarWriter(str(path)) as tar:
            for i in range(EACH):
                number = int(path.stem) * EACH + i
                content = b"no array" if number == 5 else ROWS[number]["tok_depth"]
                tar.write({"__key__": f"{number:06}", "npy": content})
    records = joined(tmp_path, shares={"train": 1.0}).open("train")
    with pytest.raises(BadRecord, match="part 'tok_depth'") as caught:
        records[5]
    assert caught.value.reason == "no_npy"
    assert set(records[4]) == set(FIELDS)


def test_shards_that_are_skipped_leave_their_partners_out(tmp_path, capsys):
    write(tmp_path)
    path = tmp_path / "caption" / "00001.tar"
    path.write_bytes(path.read_bytes()[:800])
    source = joined(tmp_path)
    with pytest.raises(ValueError, match=r"00001\.tar'.*on_bad_shard"):
        source.open("train")
    under = source.under("skip")
    opened = [under.open(split) for split in under.splits()]
    assert sorted(n for records in opened for n in numbers(records)) == [
        i for i in range(SHARDS * EACH) if i // EACH != 1
    ]
    assert opened[0].num_skipped == 1
    assert "of 'rgb'" in capsys.readouterr().err
    assert under.fingerprint() == source.fingerprint()


def test_fingerprints_are_of_all_parts(tmp_path):
    write(tmp_path)
    source = joined(tmp_path)
    first = source.fingerprint()
    turned = dict(reversed(source.parts.items()))
    assert Joined(parts=turned).fingerprint() != first  # another order of the records
    assert Joined(parts=dict(sorted(source.parts.items(), key=lambda p: p[0] != "rgb"))
                  ).fingerprint() == first  # fmt: skip
    write(tmp_path, lambda name, i: name == "tok_depth" and i == 0)
    assert source.fingerprint() != first


def tar(name, **fields):
    return WebDataset(path=f"{name}/*.tar", fields={name: "txt"}, **fields)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({}, r"parts=\[\], but two or more"),
        ({"a": tar("a")}, r"parts=\['a'\], but two or more"),
        ({"a": tar("a"), "b": tar("a")}, "'a' and 'b' both give 'a'"),
        ({"a": tar("a", identity="cls"), "b": tar("b", identity="cls")}, "both give 'identity'"),
        ({"a": tar("a"), "b": WebDataset(path="b")}, r"parts\['b'\] does not say what it gives"),
        ({"a": tar("a"), "b": tar("b", shares={"train": 0.5, "val": 0.5})}, "of 'b' divide"),
        ({"a": tar("a"), "b": tar("b", shares={"val": 0.1, "train": 0.9})}, "of 'b' divide"),
    ],
)
def test_wrong_parts(made, said):
    with pytest.raises(ValueError, match=f"^Joined: .*{said}"):
        Joined(parts=made)


def test_parts_that_cannot_be_opened_as_one(tmp_path):
    write(tmp_path)
    made = parts(tmp_path, ("rgb", "caption"))
    held = WebDataset(files={"test": f"{tmp_path}/caption/*.tar"}, fields={"caption": "txt"})
    with pytest.raises(ValueError, match="no split is in all parts: 'rgb' has train, val; 'cap"):
        Joined(parts={**made, "caption": held}).splits()
    with pytest.raises(ValueError, match="split='test' is not in all parts; there are train, val"):
        Joined(parts=made).open("test")
    with pytest.raises(ValueError, match="part 'numbers': its records have no names"):
        Joined(parts={"rgb": made["rgb"], "numbers": Numbers()}).open("train")
    (tmp_path / "more").mkdir()
    copy = tmp_path / "more" / "00000.tar"
    copy.write_bytes((tmp_path / "rgb" / "00000.tar").read_bytes())
    twice = WebDataset(path=f"{tmp_path}/{{rgb,more}}/00000.tar", fields={"rgb": "png"})
    with pytest.raises(ValueError, match=r"part 'rgb' has \d+ keys more than once.*00000.tar/0"):
        Joined(parts={**made, "rgb": twice}).open("train")


# ------------------------------------------------------------------------ in a run


def experiment(root, folder):
    """4M's tiny config on tars of three modalities."""
    path = root / "configs" / "anyany" / "fourm.py"
    module, base = config.load_module(path), config.load(f"{path}:tiny")
    modalities = {name: base.modalities[name] for name in FIELDS}
    (task,) = base.tasks.values()
    source = joined(folder, shares={"train": 0.75, "val": 0.25})
    task = dataclasses.replace(task, source=source, batch_size=8, group_rows=1,
                               inputs=tuple(FIELDS), targets=("caption", "tok_depth"),
                               layout=dataclasses.replace(task.layout, policies=module.POLICIES[1:])
                               )  # fmt: skip
    return dataclasses.replace(base, modalities=modalities, tasks={"masked": task}, total_steps=4)


def test_a_part_is_addressed_by_its_name(root, tmp_path):
    made = experiment(root, tmp_path)
    again = config.from_json(json.loads(config.dump(made)), config.seam_classes(of=made))
    assert again == made
    other = config.override(made, ["--tasks.masked.source.parts.rgb.path", "elsewhere/*.tar"])
    parts_of = other.tasks["masked"].source.parts
    assert parts_of["rgb"].path == "elsewhere/*.tar"
    assert parts_of["caption"] == made.tasks["masked"].source.parts["caption"]
    with pytest.raises(ConfigError, match=r"did you mean --tasks\.masked\.source\.parts\.rgb"):
        config.override(made, ["--tasks.masked.source.parts.rbg.path", "x"])


def test_data_check_reads_all_parts(root, tmp_path):
    write(tmp_path / "data", lambda name, i: name == "caption" and i == 3)
    report = mmjax.data_check(experiment(root, tmp_path / "data"), None)
    assert sum(found["records"] for found in report["sources"]) == SHARDS * EACH - 1
    for found in report["sources"]:
        assert found["bad"] == {}
        assert all(s["present"] == found["read"] for s in found["streams"].values())


@pytest.mark.slow
def test_it_trains_on_the_layout_of_4m(root, tmp_path):
    write(tmp_path / "data")
    made = experiment(root, tmp_path / "data")
    result = mmjax.train(made, tmp_path / "run")
    assert result.step == 4
    assert np.isfinite(result.metrics["losses/masked/loss"])
    workers = dataclasses.replace(made, data=dataclasses.replace(made.data, num_workers=2))
    again = mmjax.train(workers, tmp_path / "workers")
    assert again.metrics["losses/masked/loss"] == result.metrics["losses/masked/loss"]
