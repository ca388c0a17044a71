"""Records as others wrote them: classes, boxes, JSON in columns, tensors, folders of `datasets`."""

from __future__ import annotations

import json
import tarfile
import types

import numpy as np
import own
import pyarrow
import pytest
from pyarrow import parquet

from mmjax.data import fields, layouts, loader, mixture
from mmjax.data.array_records import ArrayRecords, write_array_records
from mmjax.data.folder import Folder
from mmjax.data.hugging_face import HuggingFace
from mmjax.data.parquet import Parquet
from mmjax.data.source import BadRecord
from mmjax.data.task import Task
from mmjax.data.tfds import TFDS
from mmjax.data.webdataset import WebDataset
from mmjax.evaluate import ZeroShot
from mmjax.experiment import Guards
from mmjax.modalities.label import Label
from mmjax.modalities.modality import Unreadable
from mmjax.modalities.structured import Boxes
from mmjax.modalities.text import Text
from mmjax.run import view as view_lib
from mmjax.tokenizers.sentencepiece import SentencePiece
from mmjax.typing import Vocabulary

# ------------------------------------------------------------------------------- classes


def test_the_names_of_folders_are_classes(tmp_path):
    for name in ("cat/1", "cat/2", "dog/1"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / f"{name}.txt").write_text(name)
    (tmp_path / "data" / "top.txt").write_text("top")
    wanted = {"text": "txt", "label": "__folder__"}
    records = Folder(files={"train": f"{tmp_path}/data"}, fields=wanted).open("train")
    found = {records[i]["text"].decode(): records[i]["label"] for i in range(4)}
    assert found == {"cat/1": "cat", "cat/2": "cat", "dog/1": "dog", "top": "data"}
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("root/cat/1.txt", "root/dog/1.txt", "2.txt"):
            own.add(tar, name, b"x")
    tar = WebDataset(files={"train": f"{tmp_path}/x.tar"}, fields=wanted).open("train")
    assert [tar[i].get("label") for i in range(3)] == ["cat", "dog", None]
    everything = WebDataset(files={"train": f"{tmp_path}/x.tar"}).open("train")
    assert everything[0].keys() == {"txt"}


def test_numbers_and_names_in_cls_members(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, content in enumerate((b"1", b"dog\n", b"\xef\xbb\xbfcat", b" 0 ", b"x" * 2000)):
            own.add(tar, f"{i}.cls", content)
    records = WebDataset(files={"train": f"{tmp_path}/x.tar"}, fields={"label": "cls"}).open(
        "train"
    )
    label = Label(names=("cat", "dog"))
    assert [label.number(records[i]["label"]) for i in range(4)] == [1, 1, 0, 0]
    with pytest.raises(BadRecord, match="2000 bytes"):
        records[4]


def test_labels_say_what_is_wrong():
    label = Label(names=("cat", "dog"))
    with pytest.raises(Unreadable, match=r"Label: 'dgo' is no class; did you mean 'dog'\?"):
        label.encode("dgo")
    with pytest.raises(ValueError, match="'cat' twice"):
        Label(names=("cat", "cat "))
    for fields_ in ({}, {"names": ("a",), "num_classes": 2}):
        with pytest.raises(ValueError, match="give one of the two"):
            Label(**fields_)
    assert label.encode("  ") is None
    assert label.given(b"1") == "dog"
    one = Label(names=("only",))  # one class is a degenerate set, but a valid one
    assert one.decode(one.encode(0)) == "only"


class View:
    """A view of embeddings that are given by value."""

    split = "val"

    def __init__(self, label, rows):
        modalities = {"label": label}
        self.rows, self.label = rows, label
        self.program = types.SimpleNamespace(
            experiment=types.SimpleNamespace(modalities=modalities)
        )

    def on(self, source):
        return self

    def examples(self, split, limit=None):
        return self.rows[:limit]

    def value(self, name, example):
        return example.get(name) if name != "label" else self.label.given(example.get(name))

    def has(self, name, example):
        return self.value(name, example) is not None

    def example(self, name, value):
        return {name: value}

    def comparing(self, *names):
        return dict.fromkeys(names, "task")

    def embed(self, name, examples, task):
        places = {"a photo of a cat": 0, "a photo of a dog": 1}
        if name == "text":
            return np.eye(2, dtype=np.float32)[[places[e["text"]] for e in examples]]
        return np.stack([e["image"] for e in examples])

    def prototype(self, task, prompts):
        return prompts.mean(0)

    def similarity(self, task, a, b):
        return a @ b.T


def test_zero_shot_takes_names_and_targets_from_a_label():
    up, down = np.float32([1, 0]), np.float32([0, 1])
    rows = [
        {"image": up, "label": "cat"},
        {"image": down, "label": 1},
        {"image": up, "label": b"dog"},  # a miss
        {"image": up},  # of no class
        {"image": down, "label": "dog"},
    ]
    view = View(Label(names=("cat", "dog")), rows)
    evaluator = ZeroShot(modalities=("image",), classes="label", templates=("a photo of a {}",))
    assert evaluator.run(view) == {"image_top1": 0.75}
    assert evaluator.chance(view) == {"top1": 0.5}
    with pytest.raises(ValueError, match="no modality with names"):
        evaluator.run(View(Label(num_classes=2), rows))
    with pytest.raises(ValueError, match="give one of them"):
        ZeroShot(modalities=("image",), classes="label", prompts={0: ("a",)})
    with pytest.raises(ValueError, match="for the name"):
        ZeroShot(modalities=("image",), classes="label", templates=("a photo",))


# ------------------------------------------------------------------------------- boxes

HALF = [[0.25, 0.5, 0.75, 1.0]]


@pytest.mark.parametrize(
    "value",
    [
        {"x0": 16, "y0": 20, "x1": 48, "y1": 40, "width": 64, "height": 40},
        {"y1": "40", "x1": b"48", "y0": "20", "x0": "16", "height": "40", "width": "64"},
        {"x0": 0.25, "w": 0.5, "cy": 0.75, "h": 0.5},
        {"x1": [0.75], "w": [0.5], "y0": [0.5], "y1": [1.0]},
        {"boxes": [16, 20, 48, 40], "width": 64, "height": 40},
    ],
)
def test_boxes_of_maps(value):
    boxes = Boxes(bins=1001)
    np.testing.assert_allclose(boxes.decode(boxes.encode(value)), HALF, atol=1e-3)


@pytest.mark.parametrize(
    ("order", "value"),
    [
        ("xyxy", HALF[0]),
        ("yxyx", [[0.5, 0.25, 1.0, 0.75]]),
        ("xywh", [0.25, 0.5, 0.5, 0.5]),
        ("cxcywh", [[0.5, 0.75, 0.5, 0.5]]),
    ],
)
def test_boxes_of_all_orders(order, value):
    boxes = Boxes(bins=1001, order=order)
    np.testing.assert_allclose(boxes.decode(boxes.encode(value)), HALF, atol=1e-3)
    assert boxes.encode(np.zeros((0, 4))).length == 1
    assert boxes.encode({"boxes": []}).length == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"x0": 0, "x1": 1}, "along y; give two of y0, y1, h, cy"),
        ({}, "no side does not say"),
        ({"x0": 0, "x1": 90, "y0": 0, "y1": 1, "width": 64}, "give its width and height"),
        ({"x0": 0, "x1": 90, "y0": 0, "y1": 1, "width": 64, "height": 40}, "outside 0..1"),
        ({"x0": 9, "x1": 3, "y0": 0, "y1": 1, "width": 64, "height": 40}, "x1 < x0"),
        ({"x0": float("nan"), "x1": 1, "y0": 0, "y1": 1}, "NaN"),
        ({"x0": [0, 1], "x1": [1], "y0": [0], "y1": [1]}, "several lengths"),
        ({"x0": "left", "x1": 1, "y0": 0, "y1": 1}, "is no number"),
    ],
)
def test_boxes_that_are_refused(value, said):
    with pytest.raises(ValueError, match=f"^Boxes: .*{said}"):
        Boxes().encode(value)


def test_one_box_a_row_of_a_table(tmp_path):
    (tmp_path / "t.csv").write_text(
        "xmin,ymin,xmax,ymax,img_w,img_h\n16,20,48,40,64,40\n,,,,64,40\n1,2,3,,64,40\n"
    )
    text = "x0=xmin, y0=ymin, x1=xmax, y1=ymax, width=img_w, height=img_h"
    records = Folder(files={"train": f"{tmp_path}/t.csv"}, fields={"boxes": text}).open("train")
    np.testing.assert_allclose(Boxes().decode(Boxes().encode(records[0]["boxes"])), HALF, atol=1e-3)
    for row in (1, 2):
        with pytest.raises(ValueError, match="give two of"):
            Boxes().encode(records[row]["boxes"])
    with pytest.raises(ValueError, match=r"fields\['boxes'\]=.* is in no record"):
        Folder(files={"train": f"{tmp_path}/t.csv"}, fields={"boxes": "x0=xmin,x1=xmux"}).open(
            "train"
        )


# ------------------------------------------------------------------------------- paths

META = {"caption": {"en": "a cat", "tags": ["one", {"name": "two"}]}, "size": [3, 4]}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json column", "struct", "tar", "array_record"])
def test_values_inside_of_json_by_their_path(kind, tmp_path):
    wanted = {
        "text": "meta.caption.en",
        "second": "meta.caption.tags.1.name",
        "none": "meta.nine.x",
    }
    files = {"train": f"{tmp_path}/x.*"}
    if kind == "csv":
        cell = json.dumps(META).replace('"', '""')
        (tmp_path / "x.csv").write_text(f'meta,b\n"{cell}",1\n')
        source = Folder(files=files, fields=wanted)
    elif kind == "jsonl":
        (tmp_path / "x.jsonl").write_text(json.dumps({"meta": META}) + "\n")
        source = Folder(files=files, fields=wanted)
    elif kind in ("json column", "struct"):
        simple = {"caption": {"en": "a cat", "tags": [{"name": "one"}, {"name": "two"}]}}
        value = json.dumps(META) if kind == "json column" else simple
        parquet.write_table(pyarrow.table({"meta": [value]}), tmp_path / "x.parquet")
        source = Parquet(files=files, fields=wanted)
    elif kind == "tar":
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            own.add(tar, "1.meta.json", json.dumps(META).encode())
        wanted = {key: text.replace("meta", "meta.json") for key, text in wanted.items()}
        source = WebDataset(files=files, fields=wanted)
    else:
        write_array_records(tmp_path / "x.array_record", [{"meta": META}])
        source = ArrayRecords(files=files, fields=wanted)
    assert source.open("train")[0] == {"text": "a cat", "second": "two"}


def test_a_path_into_what_is_no_json_is_a_bad_record(tmp_path):
    (tmp_path / "x.csv").write_text("meta\nno json\n[1]\n7\n" + "[" * 100_000 + "\n")
    source = Folder(files={"train": f"{tmp_path}/x.csv"}, fields={"a": "meta.0", "m": "meta"})
    records = source.open("train")
    for row in (0, 3):
        with pytest.raises(BadRecord) as caught:
            records[row]
        assert caught.value.reason == "no_json"
    assert [records[row].get("a") for row in (1, 2)] == [1, None]
    big = fields.parsed("meta.a", {"meta"})
    with pytest.raises(BadRecord, match="more than"):
        big.value({"meta": b" " * (fields.MAX_JSON + 1)})


def test_a_field_with_a_dot_or_an_equals_sign_in_its_name_is_itself(tmp_path):
    row = {"a.b": "dotted", "c=d": "equal", "a": {"b": "inner"}}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    wanted = {"dotted": "a.b", "equal": "c=d", "first": "nine;a.b"}
    records = Folder(files={"train": f"{tmp_path}/x.jsonl"}, fields=wanted).open("train")
    assert records[0] == {"dotted": "dotted", "equal": "equal", "first": "dotted"}


def test_identity_and_key_may_be_paths_too(tmp_path):
    rows = [{"text": str(i), "meta": {"id": f"{9 - i}", "group": i // 2}} for i in range(6)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = Folder(files={"train": f"{tmp_path}/x.jsonl"}, fields={"text": "text"},
                    key="meta.id", identity="meta.group")  # fmt: skip
    records = source.open("train")
    assert [records[i]["text"] for i in range(6)] == ["5", "4", "3", "2", "1", "0"]
    assert [records[i]["identity"] for i in range(6)] == [2, 2, 1, 1, 0, 0]


# ------------------------------------------------------------------------------- names of files


def test_absolute_names_inside_of_the_root_are_read(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "link").symlink_to("data")
    names = [f"{tmp_path}/data/a.txt", f"{tmp_path}/secret.txt", f"{tmp_path}/data/../secret.txt",
             f"{tmp_path}/database.txt", f"{tmp_path}/link/a.txt"]  # fmt: skip
    table = "".join(f"{name}\n" for name in names)
    (tmp_path / "data" / "metadata.csv").write_text(f"file_name\n{table}")
    for path, good in ((f"{tmp_path}/data", [0]), (f"{tmp_path}/link", [0, 4])):
        records = Folder(files={"train": path}, fields={"t": "file_name"}).open("train")
        for row in range(5):
            if row in good:
                assert records[row] == {"t": b"a"}
                continue
            with pytest.raises(BadRecord) as caught:
                records[row]
            assert caught.value.reason in ("outside", "no_file")
            assert b"secret" not in str(caught.value).encode().replace(b"secret.txt", b"")
    monkeypatch.chdir(tmp_path)
    relative = Folder(files={"train": "data"}, fields={"t": "file_name"}).open("train")
    assert relative[0] == {"t": b"a"}


# ------------------------------------------------------------------------------- TFDS


def prepared(folder, features, examples):
    """A data set of TFDS with these features."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    folder.mkdir()
    made = tfds.features.FeaturesDict(features)
    made.save_config(str(folder))
    writer = array_record_module.ArrayRecordWriter(
        str(folder / "own-train.array_record-00000-of-00001"), "group_size:1"
    )
    for example in examples:
        writer.write(made.serialize_example(made.encode_example(example)))
    writer.close()
    splits = [{"name": "train", "shardLengths": [str(len(examples))]}]
    info = {"name": "own", "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_tensors_sequences_and_classes_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "grid": tfds.features.Tensor(shape=(2, 3), dtype=np.float32),
        "open": tfds.features.Tensor(shape=(None, 2), dtype=np.uint8),
        "one": tfds.features.Tensor(shape=(1,), dtype=np.int32),
        "flags": tfds.features.Tensor(shape=(3,), dtype=np.bool_),
        "scalar": tfds.features.Scalar(np.int64),
        "label": tfds.features.ClassLabel(names=["cat", "great tit"]),
        "bbox": tfds.features.BBoxFeature(),
        "objects": tfds.features.Sequence(
            {"bbox": tfds.features.BBoxFeature(), "kind": tfds.features.ClassLabel(num_classes=3)}
        ),
    }  # fmt: skip
    box = lambda *sides: tfds.features.BBox(*sides)
    example = {
        "grid": np.arange(6, dtype=np.float32).reshape(2, 3),
        "open": np.arange(8, dtype=np.uint8).reshape(4, 2),
        "one": np.int32([7]),
        "flags": np.array([True, False, True]),
        "scalar": 5,
        "label": "great tit",
        "bbox": box(0.5, 0.25, 1.0, 0.75),
        "objects": [
            {"bbox": box(0.0, 0.0, 0.5, 0.5), "kind": 1},
            {"bbox": box(0.5, 0.25, 1.0, 0.75), "kind": 2},
        ],
    }
    source = TFDS(path=str(prepared(tmp_path / "d", features, [example])))
    found = source.open("train")[0]
    for name in ("grid", "open", "one", "flags"):
        np.testing.assert_array_equal(found[name], example[name])
        assert found[name].dtype == example[name].dtype
        assert found[name].shape == example[name].shape
    assert (found["scalar"], found["label"]) == (5, 1)
    assert found["objects/bbox"].shape == (2, 4)
    boxes = Boxes(bins=1001, order="yxyx")
    np.testing.assert_allclose(boxes.decode(boxes.encode(found["bbox"])), HALF, atol=1e-3)
    assert source.class_names("label") == ("cat", "great tit")
    label = Label(names=source.class_names("label"))
    assert label.given(found["label"]) == "great tit"
    with pytest.raises(ValueError, match="no names of classes of 'scalar'"):
        source.class_names("scalar")


def test_tensors_whose_numbers_do_not_fit_are_bad_records(tmp_path):
    import tensorflow_datasets as tfds

    features = {"grid": tfds.features.Tensor(shape=(2, 3), dtype=np.float32)}
    folder = prepared(tmp_path / "d", features, [{"grid": np.zeros((2, 3), np.float32)}])
    content = (folder / "features.json").read_text()
    assert '"3"' in content
    (folder / "features.json").write_text(content.replace('"3"', '"4"'))
    with pytest.raises(BadRecord, match="cannot reshape"):
        TFDS(path=str(folder)).open("train")[0]
    (folder / "features.json").write_text(content.replace('"3"', '"many"'))
    with pytest.raises(ValueError, match=r"^TFDS: "):
        TFDS(path=str(folder)).open("train")


# ------------------------------------------------------------------------------- datasets


def table_of(rows):
    """A table as `datasets` makes one: structs of bytes and path, and its features as metadata."""
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    schema = pyarrow.schema(
        [("image", image), ("text", pyarrow.string()), ("label", pyarrow.int64())]
    )
    info = {"info": {"features": {"label": {"names": ["red", "green"], "_type": "ClassLabel"}}}}
    columns = {
        "image": [{"bytes": r["image"], "path": None} for r in rows],
        "text": [r["text"] for r in rows],
        "label": [r["group"] % 2 for r in rows],
    }
    table = pyarrow.table(columns, schema=schema)
    return table.replace_schema_metadata({"huggingface": json.dumps(info)})


def saved(folder, rows, name="data-00000-of-00001.arrow", **state):
    """A split as `save_to_disk` writes it."""
    folder.mkdir(parents=True)
    table = table_of(rows)
    path = str(folder / name)
    with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    state = {"_data_files": [{"filename": name}], "_indices_files": None} | state
    (folder / "state.json").write_text(json.dumps(state))
    features = {"label": {"names": ["red", "green"], "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


ROWS = own.records(count=8, size=4)
WANTED = {"image": "image", "text": "text", "label": "label"}


@pytest.mark.parametrize("kind", ["saved", "one", "hub", "folders", "shares"])
def test_folders_of_datasets(kind, tmp_path):
    path = tmp_path / "set"
    if kind == "saved":
        saved(path / "train", ROWS[:5])
        saved(path / "test", ROWS[5:])
        (path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    elif kind in ("one", "shares"):
        saved(path, ROWS)
    else:
        for split, rows in (("train", ROWS[:5]), ("test", ROWS[5:])):
            name = {"hub": f"data/{split}-00000-of-00001-ab12.parquet",
                    "folders": f"config/{split}/0000.parquet"}[kind]  # fmt: skip
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(table_of(rows), path / name)
        (path / "README.md").write_text("about")
    shares = {"shares": {"train": 0.5, "val": 0.5}} if kind == "shares" else {}
    source = HuggingFace(path=str(path), fields=WANTED, **shares)
    splits = {"one": {"train"}, "shares": {"train", "val"}}.get(kind, {"train", "test"})
    assert set(source.splits()) == splits
    found = []
    for split in ("train", "test", "val"):
        if split in splits:
            records = source.open(split)
            found += [records[i] for i in range(len(records))]
    assert {r["text"].decode() for r in found} == {r["text"] for r in ROWS}
    first = next(r for r in found if r["text"].decode() == ROWS[1]["text"])
    assert first["image"] == ROWS[1]["image"]
    assert Label(names=source.class_names("label")).given(first["label"]) == "green"
    with pytest.raises(ValueError, match="no names of classes of 'text'"):
        source.class_names("text")
    assert len(source.fingerprint()) == 64


def test_folders_of_datasets_that_are_refused(tmp_path):
    cases = {
        "selection": ({"_indices_files": [{"filename": "x"}]}, "flatten_indices"),
        "outside": ({"_data_files": [{"filename": "../x.arrow"}]}, "names no files beside it"),
        "nothing": ({"_data_files": []}, "names no files beside it"),
        "absent": ({"_data_files": [{"filename": "x.arrow"}]}, "No such file"),
    }
    for name, (state, said) in cases.items():
        saved(tmp_path / name, ROWS[:2], **state)
        with pytest.raises(ValueError, match=f"^HuggingFace: .*{said}"):
            HuggingFace(path=str(tmp_path / name)).open("train")
    saved(tmp_path / "link", ROWS[:2])
    file = tmp_path / "link" / "data-00000-of-00001.arrow"
    file.rename(tmp_path / "elsewhere.arrow")
    file.symlink_to(tmp_path / "elsewhere.arrow")
    with pytest.raises(ValueError, match="leads out of"):
        HuggingFace(path=str(tmp_path / "link")).open("train")
    saved(tmp_path / "cut", ROWS)
    file = tmp_path / "cut" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"^HuggingFace: '.*arrow' cannot be read"):
        HuggingFace(path=str(tmp_path / "cut")).open("train")
    (tmp_path / "empty").mkdir()
    for path, said in (("empty", "neither state.json"), ("cut/state.json", "is no folder")):
        with pytest.raises(ValueError, match=said):
            HuggingFace(path=str(tmp_path / path)).open("train")
    with pytest.raises(ValueError, match="leave it empty"):
        HuggingFace(files={"train": "x"})


# ------------------------------------------------------------------------------- several captions


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    text = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=4), max_tokens=16)
    return text.fit(lambda: [["one two", "three"], "four five", []], tmp_path_factory.mktemp("t"))


def test_several_captions_are_each_a_choice(words):
    assert words.choices(["a\r\n", " ", None, b"b", "a"]) == ("a", "b")
    assert words.choices(np.array(["a", "b"], object)) == ("a", "b")
    for blank in ([], ["", None, "\n"]):
        assert words.choices(blank) == (None,)
        assert words.encode(blank) is None
    np.testing.assert_array_equal(words.encode(["one", "two"]).ids_L, words.encode("one").ids_L)
    with pytest.raises(ValueError, match="no text"):
        words.encode(["one", 7])
    with pytest.raises(Unreadable, match="2000 texts"):
        words.encode(["one"] * 2000)


def captioned(tmp_path, count=8):
    rows = [{"text": [f"cap {i} {j}" for j in range(1 + i % 3)]} for i in range(count)]
    rows[0]["text"] = "cap 0 0"
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return Folder(files={"train": f"{tmp_path}/x.jsonl"}, fields={"text": "text"})


def seen(source, words, seed, epochs):
    """Captions by record and epoch."""
    vocabulary = Vocabulary((words.spec("text"),))
    task = Task(source=source, inputs=("text",), targets=("text",), objective=None, batch_size=8,
                layout=layouts.Masked(input_tokens=8, target_tokens=8), group_rows=4)  # fmt: skip
    found = loader.readers({"one": task}, {"text": words}, vocabulary, "train", 0.0)
    schedule = mixture.Mixture().bind({"one": task}, 0)
    made = loader.Batches(schedule, mixture.Journal(), found, vocabulary, seed)
    captions = {}
    for epoch in range(epochs):
        samples, _ = made._samples("one", np.arange(8) + 8 * epoch)
        for sample in samples:
            captions[sample.sample] = words.decode(sample.pieces["text"])
    return captions


def test_training_takes_every_caption_in_turn(tmp_path, words):
    source = captioned(tmp_path)
    found = seen(source, words, 0, 6)
    for record in range(8):
        count = 1 + record % 3
        order = [found[record, epoch] for epoch in range(6)]
        assert set(order[:count]) == {f"cap {record} {j}" for j in range(count)}
        assert order[count:] == order[: 6 - count]
    assert seen(source, words, 0, 6) == found  # a function of the seed
    assert seen(source, words, 1, 6) != found
    first = [found[record, 0] for record in range(8)]
    assert any(not caption.endswith(" 0") for caption in first)


def test_retrieval_takes_all_captions(tmp_path, words):
    source = captioned(tmp_path)
    experiment = types.SimpleNamespace(modalities={"text": words}, tasks={}, guards=Guards())
    program = types.SimpleNamespace(experiment=experiment)
    view = view_lib.View(program=program, params={}, model_state={}, extra={}, step=0,
                         split="train", data=source)  # fmt: skip
    examples = view.examples("train")
    assert [e["text"] for e in examples][:6] == [
        "cap 0 0", "cap 1 0", "cap 1 1", "cap 2 0", "cap 2 1", "cap 2 2"
    ]  # fmt: skip
    assert len(examples) == sum(1 + i % 3 for i in range(8))
    assert [e.get("identity") for e in examples][:6] == [None, 1, 1, 2, 2, 2]
    assert len(view.examples("train", 2)) == 3  # two records
