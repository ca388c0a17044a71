"""Loading, overriding, writing and comparing configs, on a small tree of dataclasses."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal

import mini
import pytest

from mmjax import config
from mmjax.config import ConfigError, names
from mmjax.experiment import Guards


class Precision(enum.Enum):
    HIGH = 1
    LOW = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Base of a seam."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Softmax(Part):
    temperature: float = 0.07
    kind: Literal["pairs", "all"] = "pairs"
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigmoid(Part):
    bias: float = -10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    objective: Any
    batch_size: int = dataclasses.field(default=64, metadata={"identity": "data"})
    inputs: tuple[str, ...] = ("image", "text")
    sizes: list[int] = dataclasses.field(default_factory=list)
    is_on: bool = False
    folder: Path | None = None
    precision: Precision = Precision.HIGH
    extra: Any = None

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"Job: batch_size={self.batch_size} must be 1 or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root:
    name: str = "tiny"
    jobs: dict[str, Job] = dataclasses.field(metadata={"identity": "numerics"})
    widths: tuple[int, ...] = dataclasses.field(default=(8, 16), metadata={"identity": "model"})
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    parts: tuple[Part, ...] = ()


CLASSES = {names.name_of(c): c for c in (Softmax, Sigmoid, Job, Root, Precision)}


def tiny(**changes) -> Root:
    jobs = {"pair": Job(objective=Softmax()), "text": Job(objective=Sigmoid())}
    return Root(**{"jobs": jobs, "shares": {"pair": 3.0, "text": 1.0}, **changes})


CONFIG_FILE = """
    import dataclasses

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine:
        width: int = 3

        def __post_init__(self):
            if self.width < 1:
                raise ValueError(f"Mine: width={self.width} must be 1 or more.")

    def get_config():
        return Mine()

    def wide(width=300):
        return Mine(width=width)

    def needs(scale):
        return Mine()

    def number():
        return 5

    def typo():
        return Mine(widht=4)

    def broken_rule():
        return Mine(width=-1)

    def name_error():
        return Mnie()
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(CONFIG_FILE).lstrip())
    return path


# ------------------------------------------------------------------------------ load


def test_load_takes_get_config_or_the_named_function(file):
    assert config.load(str(file)).width == 3
    assert config.load(f"{file}:wide").width == 300


def test_load_twice_gives_the_same_class_until_the_text_changes(file):
    first = type(config.load(str(file)))
    assert type(config.load(f"{file}:wide")) is first
    file.write_text(file.read_text().replace("width: int = 3", "width: int = 4"))
    again = config.load(str(file))
    assert again.width == 4
    assert type(again) is not first


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":wdie", r"no function 'wdie'; did you mean 'wide'\?"),
        (":needs", r"needs arguments \['scale'\]"),
        (":number", r"number\(\) returned int; it must return a config"),
        (":typo", r"mine.py:24: TypeError: .*'widht'; did you mean 'width'\?"),
        (":broken_rule", r"mine.py:27: Mine: width=-1 must be 1 or more"),
        (":name_error", r"mine.py:30: NameError: .*Mnie"),
    ],
)
def test_load_names_what_is_wrong(file, suffix, message):
    with pytest.raises(ConfigError, match=message):
        config.load(f"{file}{suffix}")


def test_load_names_the_nearest_file(file):
    with pytest.raises(ConfigError, match=r"no such file; did you mean '.*mine.py'"):
        config.load(str(file.with_name("mien.py")))
    with pytest.raises(ConfigError, match=r"no such file, nor its folder"):
        config.load("no_such_folder/mine.py")


def test_load_gives_the_line_of_a_syntax_error(file):
    file.write_text("x = 1\ndef get_config(:\n")
    with pytest.raises(ConfigError, match=r"mine.py:2: "):
        config.load(str(file))


def test_load_wants_the_kind_that_was_asked_for(file):
    with pytest.raises(ConfigError, match="returned Mine; it must return Root"):
        config.load(str(file), kind=Root)


def test_our_own_bugs_are_not_hidden(file):
    file.write_text("import json\ndef get_config():\n    return json.loads(3)\n")
    with pytest.raises(TypeError):
        config.load(str(file))


def test_classes_of_a_config_file_reach_another_process(file):
    cloudpickle = pytest.importorskip("cloudpickle")
    data = cloudpickle.dumps(config.load(f"{file}:wide"))
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).width)"
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True)
    assert done.stdout.strip() == b"300", done.stderr.decode()


def test_a_family_shares_a_file_beside_its_recipes(file):
    file.with_name("common.py").write_text("WIDTH = 77\n")
    text = f"{file.read_text()}\nfrom mmjax import config\n"
    text += "common = config.load_module('common.py', beside=__file__)\n"
    file.write_text(f"{text}def shared():\n    return Mine(width=common.WIDTH)\n")
    assert config.load(f"{file}:shared").width == 77


# -------------------------------------------------------------------------- override


def test_override_sets_nested_fields_by_name():
    args = "--jobs.pair.objective.temperature 0.5 --jobs.text.batch_size 8 --shares.text 2"
    new = config.override(tiny(), [*args.split(), "--widths", "1", "2", "3", "--jobs.pair.is_on"])
    assert new.jobs["pair"].objective == Softmax(temperature=0.5)
    assert new.jobs["text"].batch_size == 8
    assert new.shares == {"pair": 3.0, "text": 2.0}
    assert new.widths == (1, 2, 3)
    assert new.jobs["pair"].is_on
    assert new.jobs["text"] == Job(objective=Sigmoid(), batch_size=8)


def test_override_with_dashes_equals_and_none():
    args = ["--jobs.text.batch-size=8", "--jobs.pair.objective.limit", "3"]
    new = config.override(tiny(), args)
    assert (new.jobs["text"].batch_size, new.jobs["pair"].objective.limit) == (8, 3)
    new = config.override(new, ["--jobs.pair.objective.limit", "None"])
    assert new.jobs["pair"].objective.limit is None


def test_nothing_to_override_gives_the_same_object():
    root = tiny()
    assert config.override(root, []) is root


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--jobs.pair.objective.temprature", "1"], "did you mean --jobs.pair.objective.temperatu"),
        (["--job.pair.batch_size", "1"], "did you mean --jobs.pair.batch_size"),
        (["--jobs.pear.batch_size", "1"], "did you mean --jobs.pair.batch_size"),
        (["--jobs.pair.objective", "x"], "set one, such as --jobs.pair.objective.temperature"),
        (["--jobs.pair.batch_size", "x"], "jobs.pair.batch.size.*'x'"),
        (["--jobs.pair.objective.kind", "none"], "invalid choice"),
        (["--jobs.pair.batch_size", "-4"], "Job: batch_size=-4 must be 1 or more"),
        (["--jobs.pair.batch_size"], "jobs.pair.batch.size"),
        (["name", "x"], "Unexpected argument 'name'"),
    ],
)
def test_override_names_what_is_wrong(args, message, capfd):
    with pytest.raises(ConfigError, match=message) as caught:
        config.override(tiny(), args)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_messages_are_short_on_any_terminal():
    program = """
        import dataclasses
        from mmjax import config

        @dataclasses.dataclass(frozen=True)
        class Small:
            width: int = 3

        try:
            config.override(Small(), ["--width", "a"])
        except config.ConfigError as error:
            print(error)
    """
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        expected = "Error parsing --width: invalid literal for int() with base 10: 'a'\n"
        assert (done.stdout, done.stderr) == (expected, "")


def test_override_help_lists_the_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        config.override(tiny(), ["--help"])
    assert stop.value.code == 0
    assert "--jobs.pair.objective.temperature FLOAT" in capsys.readouterr().out


# ------------------------------------------------------------------------------ JSON

TREES = [
    tiny(),
    tiny(parts=(Softmax(limit=3), Sigmoid())),
    Root(jobs={}),
    Root(jobs={"a": Job(objective=None, sizes=[1, 2], folder=Path("x/y"))}),
    Root(jobs={"a": Job(objective=Softmax(), precision=Precision.LOW)}),
    Root(jobs={"a": Job(objective=(1, [2, (3,)], {"k": [None]}))}),
    Root(jobs={"a": Job(objective=Path("p"), extra=Precision.LOW)}),
    Root(jobs={"a": Job(objective=Sigmoid(bias=-math.inf))}),
]


@pytest.mark.parametrize("root", TREES, ids=range(len(TREES)))
def test_json_round_trip_is_exact(root):
    text = config.dump(root)
    again = config.from_json(json.loads(text), CLASSES)
    assert again == root
    assert repr(again) == repr(root)  # tuples stay tuples, lists stay lists
    assert config.dump(again) == text
    assert json.loads(text)["fingerprint"] == config.fingerprint(root)


def test_integers_in_float_fields_have_one_fingerprint():
    one = Root(jobs={"a": Job(objective=Softmax(temperature=1))})
    other = Root(jobs={"a": Job(objective=Softmax(temperature=1.0))})
    assert config.fingerprint(one) == config.fingerprint(other)
    assert config.fingerprint(one) != config.fingerprint(tiny())


def test_json_names_unknown_classes_and_fields():
    tree = config.to_json(tiny())
    without = {k: v for k, v in CLASSES.items() if v is not Sigmoid}
    said = r"config.jobs.text.objective: module .*test_config has no class 'Sigmoid'; there is"
    with pytest.raises(ConfigError, match=said):
        config.from_json(tree, without)
    tree["jobs"]["pair"]["batchsize"] = 3
    with pytest.raises(ConfigError, match=r"no field 'batchsize'; did you mean 'batch_size'\?"):
        config.from_json(tree, CLASSES)


def test_json_of_an_older_version_takes_defaults():
    tree = config.to_json(tiny())
    del tree["jobs"]["pair"]["is_on"]
    assert config.from_json(tree, CLASSES) == tiny()


def test_json_refuses_what_it_cannot_hold():
    with pytest.raises(ConfigError, match=r"config.jobs.a.objective: a function cannot be written"):
        config.to_json(Root(jobs={"a": Job(objective=tiny)}))
    with pytest.raises(ConfigError, match=r"keys of a dict must be names"):
        config.to_json(Root(jobs={"a": Job(objective={3: 4})}))


# -------------------------------------------------------------------- diff, identity


def test_diff_is_readable():
    old = tiny()
    new = config.override(old, ["--jobs.pair.batch_size", "128", "--widths", "8", "32"])
    assert config.diff(old, new) == [
        "jobs.pair.batch_size: 64 -> 128",
        "widths: [8, 16] -> [8, 32]",
    ]
    assert config.diff(config.to_json(old), new) == config.diff(old, new)
    assert config.diff(old, old) == []


def test_diff_shows_classes_presence_and_order():
    old = tiny()
    pair, text = old.jobs["pair"], old.jobs["text"]
    assert config.diff(old, tiny(jobs={"text": text, "pair": pair})) == [
        "jobs: order pair, text -> text, pair"
    ]
    assert config.diff(old, tiny(jobs={"pair": pair}))[0].startswith("jobs.text: Job(objective=Si")
    assert config.diff(tiny(jobs={"pair": pair}), old)[0].startswith("jobs.text: absent -> Job(")
    other = tiny(jobs={"pair": Job(objective=Sigmoid()), "text": text})
    (line,) = config.diff(old, other)
    assert line.startswith("jobs.pair.objective: Softmax(")
    assert line.endswith("-> Sigmoid(bias=-10.0)")


def test_a_new_field_is_no_part_of_the_identity_while_it_is_at_its_default():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Layer:
        width: int = 8
        later: int = dataclasses.field(default=0, metadata={"is_new": True})

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Whole:
        layer: Any = dataclasses.field(default=Layer(), metadata={"identity": "model"})

    known = {"@class": f"{__name__}:Layer", "layer.width": 8}
    assert config.identity(Whole(), "model") == {
        k.replace("@", "layer@"): v for k, v in known.items()
    }
    assert config.identity(Whole(layer=Layer(later=1)), "model")["layer.later"] == 1
    assert "layer.later" in config.paths(Whole())


def test_identity_is_inherited_until_a_field_says_another():
    root = tiny()
    assert config.identity(root, "model") == {"widths": [8, 16]}
    assert config.identity(root, "data") == {"jobs.pair.batch_size": 64, "jobs.text.batch_size": 64}
    numerics = config.identity(root, "numerics")
    assert numerics["jobs.pair.objective.temperature"] == 0.07
    assert numerics["jobs.pair.objective@class"] == f"{__name__}:Softmax"
    assert numerics["jobs@order"] == ["pair", "text"]
    assert "jobs.pair.batch_size" not in numerics
    assert config.identity(root, "none")["name"] == "tiny"
    with pytest.raises(ValueError, match="kind='shape' must be one of"):
        config.identity(root, "shape")


# ------------------------------------------------------------------ files that are no config


@pytest.mark.fault(
    "a CONFIG that is neither .py nor .json", "it is not run; exit 2 with what configs are"
)
@pytest.mark.parametrize("name", ["x.yaml", "x.yml", "x.txt", "x", "x.pyc", "x.py.bak", "x.JSON"])
@pytest.mark.parametrize("function", ["", ":get_config"])
def test_other_files_than_python_are_never_run(name, function, tmp_path):
    (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match=r"configs are Python: file\.py:function"):
        config.load(f"{tmp_path / name}{function}")
    with pytest.raises(ConfigError, match="configs are Python"):
        config.load_module(tmp_path / name)  # as --code
    assert not (tmp_path / "ran").exists()


def deep(kind):
    if kind == "json":
        return (
            b'{"format": 1, "config": '
            + b'{"class": "Experiment", "init": ' * 400
            + b"1"
            + b"}" * 401
        )
    return b"-" * 1_000_000 + b"1"  # fmt: skip


@pytest.mark.fault(
    "a CONFIG that is a folder, a pipe, a device, huge, binary, or nested without end",
    "exit 2 with one line",
)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", ["py", "json"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("folder", "is a folder, no file"),
        ("pipe", "is a pipe, no file"),
        ("device", "is a device, no file"),
        ("huge", "bytes, more than"),
        ("binary", "can't decode byte"),
        ("nul", r"cannot contain null bytes|cannot be read: Expecting"),
        ("deep", "nested too deeply"),
        ("circle", "is a link to itself"),
    ],
)
def test_what_is_no_text_is_refused_as_a_config(what, said, suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what in ("device", "circle"):
        path.symlink_to("/dev/zero" if what == "device" else path)
    else:
        content = {"binary": b"\x89\xff\xfe" * 99, "nul": b"a = 1\0", "deep": deep(suffix)}
        path.write_bytes(content.get(what, b""))
        if what == "huge":
            os.truncate(path, 1 << 40)
    with pytest.raises(ConfigError, match=said) as caught:
        config.load(str(path))
    assert f"x.{suffix}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_config_error_survives_pickling():
    assert str(pickle.loads(pickle.dumps(ConfigError("x")))) == "x"


# ------------------------------------------------------------------------------ seams


def test_seam_classes_have_unique_names_and_include_the_config_file(file):
    classes = config.seam_classes(str(file))
    assert classes["code:Mine"].__module__.startswith("mmjax_config_")
    own = [n.rpartition(":")[2] for n in classes if n.startswith("mmjax.")]
    assert {"Modality", "Source", "Task", "Layout"} <= set(own)
    assert len(own) == len(set(own))  # they are found by their short names when they move


def test_a_class_of_the_config_file_may_have_a_name_that_mmjax_has_too(file):
    file.write_text(textwrap.dedent(CONFIG_FILE).replace("Mine", "Guards"))
    config_of = config.load(str(file))
    classes = config.seam_classes(str(file))
    tree = config.to_json(config_of)
    assert tree["class"] == "code:Guards"
    assert config.from_json(tree, classes) == config_of
    assert config.from_json({"class": "mmjax.experiment:Guards"}, classes) == Guards()
    with pytest.raises(ConfigError, match=r"may be code:Guards or mmjax\.experiment:Guards; `mmj"):
        config.from_json({"class": "Guards"}, classes)


def test_two_classes_of_one_name_in_a_file_and_its_family_are_refused(file):
    text = textwrap.dedent(CONFIG_FILE)
    file.with_name("common.py").write_text(text)
    text += "from mmjax import config\ncommon = config.load_module('common.py', beside=__file__)\n"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"'Mine' is defined in .* and in a file that it loads"):
        config.seam_classes(str(file))


# ----------------------------------------------------------------------- fields of before


def test_a_field_that_is_gone_is_left_out_where_it_said_nothing():
    experiment = mini.get_config()
    old = config.to_json(experiment) | {"eval_every": 0}
    assert config.from_json(old, config.seam_classes()) == experiment
    assert not config.diff(old, experiment)
    said = r"Experiment has no field 'eval_every' any more \(here 50\); set `every` of each"
    with pytest.raises(config.ConfigError, match=said):
        config.from_json(old | {"eval_every": 50}, config.seam_classes())
    with pytest.raises(config.ConfigError, match="no field 'eval_ever'"):
        config.from_json(old | {"eval_ever": 0}, config.seam_classes())


# ------------------------------------------------------------------------------- names

LEADING_OUT = (
    "../../out",
    "/out",
    "a/b",
    "a\\b",
    "..",
    ".",
    ".hidden",
    "",
    "a\0",
    "a\nb",
    "*",
    "[a]",
)


@pytest.mark.fault("a config.json has names that lead out of the workdir", "refused")
@pytest.mark.parametrize("name", [*LEADING_OUT, "a@b", "[a]", "a" * 101, "\u00e9" * 51, "\x1b[2J"])
@pytest.mark.parametrize("field", ["modalities", "tasks", "evaluators"])
def test_names_of_which_files_are_made(field, name):
    tree = config.to_json(mini.evaluated())
    tree[field][name] = next(iter(tree[field].values()))
    with pytest.raises(config.ConfigError, match=rf"{field} has .*, but files are named after it"):
        config.from_json(tree, config.seam_classes())


@pytest.mark.parametrize("field", ["train_split", "eval_split"])
def test_splits_are_names_too(field):
    tree = config.to_json(mini.get_config())
    tree["data"][field] = "../../out"
    with pytest.raises(config.ConfigError, match=rf"data\.{field} has '\.\./\.\./out'"):
        config.from_json(tree, config.seam_classes())


def test_most_names_are_fine():
    for name in ("image", "tok_image", "depth-2", "new voice", "t\u00e9xte", "a.b", "a:b"):
        base = mini.get_config()
        tasks = {name: base.tasks["text"]}
        assert dataclasses.replace(base, tasks=tasks).tasks == tasks
