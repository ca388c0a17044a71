"""Parts of an installed package: named in config.json, found by --code, never imported without."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import commands
import jax
import mini
import numpy as np
import pytest
from etils import epath

import mmjax
from mmjax import cli, config
from mmjax.config import ConfigError, code_file, names
from mmjax.modalities.text import Text
from mmjax.run import load as load_lib
from mmjax.run import manifest as manifest_lib
from mmjax.run import records, resume
from mmjax.run import workdir as workdir_lib

sys.path.insert(0, str(Path(__file__).parent / "package"))
import my_package

PACKAGE = Path(__file__).parent / "package"
CONFIG = Path(__file__).parent / "package_config.py"
ONE = jax.devices()[:1]


def experiment(**fields) -> mmjax.Experiment:
    return dataclasses.replace(config.load(str(CONFIG)), **fields)


def written(folder: Path, tree: dict, **start) -> epath.Path:
    """A workdir with this config.json, and a run.json that says how it was started."""
    folder.mkdir(exist_ok=True)
    document = {"format": 2, "fingerprint": config.fingerprint(tree), "config": tree}
    (folder / "config.json").write_text(json.dumps(document))
    records.write_run(folder, {"identity": {}, "starts": [start]})
    return epath.Path(folder)


def packages(*modules: str) -> dict[str, str]:
    return code_file.digests(modules)


# ----------------------------------------------------------------------------- names in JSON


def test_classes_of_one_name_are_told_apart():
    tree = config.to_json(experiment(modalities={"one": my_package.Text(), "other": Text()}))
    assert tree["modalities"]["one"]["class"] == "my_package.parts:Text"
    assert tree["modalities"]["one"]["extra"] == {
        "class": "my_package.parts:Strength",
        "value": "STRONG",
    }
    assert tree["modalities"]["other"]["class"] == "mmjax.modalities.text:Text"
    again = config.from_json(tree, config.seam_classes("my_package"))
    assert again.modalities == {"one": my_package.Text(), "other": Text()}
    assert config.to_json(again) == tree
    with pytest.raises(ConfigError, match=r"modalities\.one: class 'Text' is of module my_package"):
        config.from_json(tree, config.seam_classes())


def test_a_package_may_name_a_class_in_more_than_one_module():
    classes = config.seam_classes(["my_package.parts", str(CONFIG)])
    for module in ("my_package", "my_package.parts"):
        assert config.from_json({"class": f"{module}:Text"}, classes) == my_package.Text()
    assert config.from_json({"class": "my_package.layers:RunningMean"}, classes).scale == 1.0


def test_a_class_of_mmjax_is_found_where_it_has_moved_to():
    classes = config.seam_classes("my_package")
    for module in ("mmjax.modalities.text", "mmjax.before.it_moved", "mmjax"):
        assert type(config.from_json({"class": f"{module}:Text"}, classes)) is Text


def test_short_names_of_older_files_are_read():
    old = names.short_names(config.to_json(experiment()), every=True)
    assert old["evaluators"]["count"]["class"] == "Count"
    del old["modalities"]
    tree = {"format": 1, "config": {**old, "modalities": {}}}
    with pytest.raises(ConfigError, match=r"no class 'Run\w+'; .*needs --code FILE\|MODULE"):
        config.from_json(tree, config.seam_classes())
    with pytest.raises(ConfigError, match="'pair': modality 'one' is not in modalities"):
        config.from_json(tree, config.seam_classes("my_package"))  # all classes are found
    said = r"may be mmjax\.modalities\.text:Text or my_package(\.parts)?:Text; `mmjax train CONFIG"
    with pytest.raises(ConfigError, match=said):
        config.from_json({"class": "Text"}, config.seam_classes("my_package"))
    with pytest.raises(ConfigError, match="format=3, but this version reads up to 2"):
        config.from_json({**tree, "format": 3}, {})


def test_fingerprints_and_differences_do_not_depend_on_modules_of_mmjax():
    new = config.to_json(mini.evaluated())
    old = names.short_names(new, every=True)
    assert new["class"] == "mmjax.experiment:Experiment"
    assert old["class"] == "Experiment"
    assert config.fingerprint(old) == config.fingerprint(new)
    assert config.diff(old, new) == config.diff(new, old) == []
    mine = experiment()
    moved = config.to_json(mine)
    moved["evaluators"]["count"] = {"class": "other:Count", "every": 0}
    assert config.fingerprint(moved) != config.fingerprint(mine)
    assert config.diff(mine, moved) == [
        "evaluators.count: Count(every=0) of my_package.parts:Count"
        " -> Count(every=0) of other:Count"
    ]
    assert config.diff(names.short_names(config.to_json(mine), every=True), mine) == []


def test_the_identity_has_the_package():
    found = config.identity(experiment(), "tokens")
    assert found["modalities.one@class"] == "my_package.parts:Text"
    assert config.identity(experiment(), "tokens", 1)["modalities.one@class"] == "Text"
    assert found["modalities.one.extra"] == {
        "class": "my_package.parts:Strength",
        "value": "STRONG",
    }
    whole = mini.get_config()
    assert config.identity(whole, "model") == config.identity(whole, "model", 1)
    assert config.identity(whole, "model")["model@class"] == "Transformer"


# ----------------------------------------------------------------------------- what is wrong


def tree_with(path: str, value) -> dict:
    tree = config.to_json(experiment())
    *parents, last = path.split(".")
    inner = tree
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return tree


ODD = [
    *("os:system", "subprocess:Popen", "trap:Trap", "trap.deeper:Trap", "my_package.trap:Trap"),
    *("..:x", ".trap:Trap", "a:b:c", "trap:", ":Trap", "trap", "", " ", "trap:Trap()", "trap;x:y"),
    *("__main__:x", "code:Trap", "mmjax.trap:Trap", "trap\0:x", "a\x1b[2J:x", "x" * 10_000_000),
    *("trap:" + "x" * 10_000_000, None, 3, ["trap:Trap"], {"class": "trap:Trap"}),
]


@pytest.mark.fault(
    "a config.json names modules of its own choice, or no class at all",
    "nothing is imported; exit 2 with one line",
)
@pytest.mark.parametrize("name", ODD, ids=lambda n: repr(n)[:20])
@pytest.mark.parametrize("code", [None, "my_package"])
def test_what_a_workdir_names_is_not_imported(name, code, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    (tmp_path / "trap.py").write_text(f"open({str(mark)!r}, 'w')\nclass Trap: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    tree = tree_with("evaluators.count.class", name)
    folder = written(tmp_path / "w", tree, code_packages=packages("my_package"))
    before = set(sys.modules)
    for read in (
        lambda: load_lib.read_experiment(folder, code),
        lambda: config.load(str(folder / "config.json"), code=code),
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        assert len(str(caught.value)) < 2000
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    assert not mark.exists()
    assert not {m for m in set(sys.modules) - before if m.startswith(("trap", "my_package"))}


@pytest.mark.fault("a config.json names a class of another kind", "exit 2 with field and kinds")
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "tasks.pair.source",
            {"class": "mmjax.objectives.contrastive:InfoNCE"},
            r"config\.tasks\.pair\.source: mmjax\.objectives\.contrastive:InfoNCE is no Source, a",
        ),
        ("tasks.pair.source", {"class": "my_package.parts:Strength", "value": "WEAK"}, "no Source"),
        ("tasks.pair.source", {"size": 3}, "an object without class is no Source"),
        ("tasks.pair.source", 5, "source: 5 is no Source"),
        ("tasks.pair", {"class": "my_package:Pairs"}, r"pair: my_package\.parts:Pairs is no Task"),
        ("tasks.pair.objective", {"class": "my_package:Pairs"}, "objective is a Pairs, no Objecti"),
        (
            "modalities.one",
            {"class": "my_package:Pairs"},
            "one: my_package.parts:Pairs is no Modal",
        ),
        ("model.runs", [{"class": "my_package:RunningMean"}], r"runs\.0: .*RunningMean is no Run"),
        ("modalities.one.strength", "MEDIUM", "no Strength 'MEDIUM'"),
        ("modalities.one.strength", 3, "strength: 3 is no Strength"),
        ("modalities.one.extra", {"class": "my_package.parts:Strength"}, "no Strength None"),
        ("name", {"class": "float", "value": "a"}, "name: 'a' is no float"),
        ("name", {"class": "tuple"}, "name: None is no tuple"),
    ],
)
def test_classes_of_another_kind_are_refused(path, value, said):
    with pytest.raises(ConfigError, match=said):
        config.from_json(tree_with(path, value), config.seam_classes("my_package"))


def test_a_config_of_another_kind_is_refused(tmp_path):
    folder = written(tmp_path, {"class": "mmjax.demo.numbers:Numbers"})
    with pytest.raises(ConfigError, match=r"config: mmjax\.demo\.numbers:Numbers is no Experiment"):
        load_lib.read_experiment(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other.parts:Text", r"one: class 'Text' is of module other\.parts, .*: --code other\."),
        ("my_package.more:Text", r"module my_package\.more, which what --code names does not im"),
        ("my_package.parts:Txt", r"module my_package\.parts has no class 'Txt'; did you mean 'Tex"),
        ("code:Mine", "class 'Mine' is in no file that --code names; .*: --code FILE"),
        ("mmjax.modalities.text:Txt", "no class 'Txt'; did you mean 'Text'"),
    ],
)
def test_absent_classes_are_told_with_what_to_do(name, said):
    with pytest.raises(ConfigError, match=said):
        config.from_json(tree_with("modalities.one.class", name), config.seam_classes("my_package"))


@pytest.mark.fault("--code names a module that is absent, or fails", "exit 2 with the reason")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"--code parts_\w+: there is no module named 'parts_\w+'; install its package"),
        (
            "raise RuntimeError('no luck')",
            r"be imported: RuntimeError: no luck at .*parts_\w+.py:1",
        ),
        ("def (", "cannot be imported: SyntaxError"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("import absent_from_here", "it needs the module absent_from_here; install it"),
        ("x = 3", "none of the modules that are imported with it has a dataclass"),
    ],
)
def test_modules_that_cannot_be_imported_are_named(text, said, tmp_path, monkeypatch):
    name = f"parts_{hashlib.sha256(str(text).encode()).hexdigest()[:6]}"
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=said) as caught:
        config.seam_classes(name)
    assert "\n" not in str(caught.value)


def test_modules_without_source_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty_space").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("sys", "empty_space"):
        with pytest.raises(ConfigError, match=f"--code {name}: has no source file"):
            config.seam_classes(name)
    for name in ("my_package.absent", "my_package.parts.deeper"):
        with pytest.raises(ConfigError, match=f"there is no module {name}; install it"):
            config.seam_classes(name)
    for name in ("..", "my-package", "a..b", "./my_package", "x.yaml/y"):
        with pytest.raises(ConfigError, match=r"no such file|configs are Python|is a folder"):
            config.seam_classes(name)


# --------------------------------------------------------------------------------- SHA-256


def test_the_digest_of_a_package_is_that_of_its_sources(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    space = tmp_path / "a_space" / "whole"
    (space / "inner").mkdir(parents=True)
    (space / "__init__.py").write_text("raise RuntimeError")  # nothing is imported for it
    (space / "inner" / "b.py").write_text("b = 1")
    first = packages("a_space.whole.inner.b", "a_space.whole")
    assert list(first) == ["a_space.whole"]
    (space / "notes.txt").write_text("other files do not count")
    (space / "__pycache__").mkdir()
    (space / "__pycache__" / "b.pyc").write_text("nor what was compiled")
    os.mkfifo(space / "pipe.py")
    assert packages("a_space.whole") == first
    (space / "inner" / "b.py").rename(space / "inner" / "c.py")
    assert packages("a_space.whole") != first
    (tmp_path / "alone.py").write_text("x = 1")
    assert packages("alone", "absent", "sys") == {"alone": hashlib.sha256(b"x = 1").hexdigest()}


def test_code_must_be_what_the_run_was_started_with(tmp_path):
    tree, right = config.to_json(experiment()), packages("my_package")
    folder = written(tmp_path, tree, code_packages=right)
    assert load_lib.read_experiment(folder, "my_package") == experiment()
    assert load_lib.read_experiment(folder, ["my_package.layers"]) == experiment()
    other = {"my_package": "0" * 64}
    folder = written(tmp_path, tree, code_packages=other, code_sha256="1" * 64)
    said = rf"is not the package that .* \(SHA-256 {right['my_package']}, but run.json records 0+\)"
    with pytest.raises(ConfigError, match=said):
        load_lib.read_experiment(folder, "my_package")
    for start in ({}, {"code_sha256": "1" * 64}, {"code_packages": 3}, {"code_packages": {"a": 3}}):
        folder = written(tmp_path, tree, **start)
        with pytest.raises(ConfigError, match=r"does not say which package .*give --code-sha256"):
            load_lib.read_experiment(folder, "my_package")


def test_the_digest_of_the_user_counts_for_a_package_too(tmp_path, monkeypatch):
    monkeypatch.setattr(code_file, "_confirmed", set())
    (digest,) = packages("my_package").values()
    folder = written(tmp_path, config.to_json(experiment()))
    code = [str(CONFIG), "my_package"]
    with pytest.raises(
        ConfigError, match=rf"my_package: has SHA-256 {digest}, but --code-sha256 s"
    ):
        code_file.check(code, ["ab"])
    code_file.check(code, [digest])
    assert load_lib.read_experiment(folder, "my_package") == experiment()
    with pytest.raises(ConfigError, match="does not say which file"):
        load_lib.read_experiment(folder, code)


def test_a_file_that_a_program_imported_is_the_file(tmp_path):
    import letters

    tree = config.to_json(letters.get_config())
    assert tree["modalities"]["text"]["class"] == "letters:Letters"
    folder = written(tmp_path, tree, code_packages=packages("letters"))
    assert load_lib.read_experiment(folder, letters.__file__).name == letters.get_config().name


# ------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("package") / "run"
    mmjax.train(experiment(), workdir, devices=ONE, code=str(CONFIG))
    return workdir


def resumed(workdir: Path, new: mmjax.Experiment) -> None:
    """What a start of training does first."""
    folder = epath.Path(workdir)
    workdir_lib.open_run(folder, new, None, workdir_lib.resume_from(folder, True))


@pytest.mark.ci
def test_the_commands_work_with_parts_of_a_package(trained, tmp_path, capsys):
    def run(*args: str) -> tuple[int, str]:
        status = cli.main([str(a) for a in args])
        told = capsys.readouterr()
        return status, told.out + told.err

    start = records.read_run(trained)["starts"][0]
    assert start["code_packages"] == packages("my_package")
    code = ["--code", "my_package"]
    given = ["--given", "one=7", "--out", tmp_path / "out.npy"]
    for verb in (["eval"], ["embed", *given], ["export", "--out", tmp_path / "hf"]):
        status, said = run(verb[0], trained, *verb[1:])
        assert status == 2, said
        assert "class 'Text' is of module my_package.parts" in said
        assert "--code my_package." in said
    status, said = run("eval", trained, *code)
    assert status == 0, said
    assert "parameters" in said
    assert run("embed", trained, *given, *code)[0] == 0
    assert np.load(tmp_path / "out.npy").shape == (1, 16)
    want = ["--given", "one=7", "--want", "other", "--out", tmp_path / "made"]
    assert "no generative task" in run("generate", trained, *want, *code)[1]
    assert (
        "'one' is a my_package.parts:Text, whose preprocessing has no PyTorch twin"
        in (run("export", trained, "--out", tmp_path / "hf", *code)[1])
    )
    status, said = run("info", trained)
    assert status == 0
    assert "1 x main: Block, RunningMean" in said
    assert run("report", trained)[0] == 0
    view = mmjax.load(str(trained), code="my_package", devices=ONE)
    assert view.step == 2
    assert mmjax.evaluate(str(trained), code=["my_package"])["parameters"]["value"] > 0


@pytest.mark.ci
def test_a_run_goes_on_only_with_its_own_classes(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    resumed(workdir, experiment(total_steps=4))
    other = experiment(modalities={"one": my_package.Text(), "other": Text(field="number")})
    with pytest.raises(ConfigError, match=r"tokens differ.*\n.*: Text\(.* of my_package\.parts:T"):
        resumed(workdir, other)


@pytest.mark.ci
def test_a_run_of_before_goes_on(trained, tmp_path):
    """It has short names in config.json and in its identity, and no digests of packages."""
    workdir = shutil.copytree(trained, tmp_path / "copy")
    tree = names.short_names(config.to_json(experiment()), every=True)
    written(workdir, tree, code_sha256="")
    document = json.loads((workdir / "config.json").read_text()) | {"format": 1}
    (workdir / "config.json").write_text(json.dumps(document))
    file = workdir / "checkpoints" / "2" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["config_format"]
    manifest["identity"] = {
        kind: config.fingerprint(config.identity(experiment(), kind, 1)) for kind in resume.REFUSED
    }
    file.write_text(json.dumps(manifest_lib.sealed(manifest)))
    with pytest.raises(ConfigError, match="belongs to another experiment"):
        resumed(workdir, experiment(seed=1))
    resumed(workdir, experiment())
    new = records.read_config(workdir)
    assert new["format"] == 2
    assert new["config"]["evaluators"]["count"]["class"] == "my_package.parts:Count"
    resumed(workdir, experiment())  # the checkpoint is still that of before


@pytest.mark.ci
def test_a_run_starts_from_one_with_parts_of_the_package(trained, tmp_path):
    result = mmjax.train(experiment(init=str(trained), total_steps=1), tmp_path, devices=ONE)
    assert result.step == 1
    with pytest.raises(ConfigError, match=r"class 'Text' is of module my_package\.parts"):
        mmjax.train(mini.get_config(init=str(trained)), tmp_path / "mini", devices=ONE)


# ------------------------------------------------------------------------------- installed


def wheel(folder: Path) -> Path:
    """The package as `pip wheel` packs it, which would need the network for setuptools."""
    path, about = folder / "my_package-0.1-py3-none-any.whl", "my_package-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as made:
        for file in sorted(PACKAGE.rglob("*.py")):
            made.write(file, file.relative_to(PACKAGE))
        made.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n"
        )
        made.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr(f"{about}/RECORD", "")
    return path


@pytest.mark.ci
def test_an_installed_package(tmp_path):
    site, workdir = tmp_path / "site", tmp_path / "run"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "-q",
        "--disable-pip-version-check",
        "install",
        "--no-index",
    ]
    subprocess.run([*pip, "--no-deps", "--target", site, wheel(tmp_path)], check=True)
    path = os.pathsep.join([str(site), str(Path(mmjax.__file__).parents[1])])

    def run(*args, **environment):
        return commands.run(*map(str, args), cwd=tmp_path, **{"PYTHONPATH": path, **environment})

    done = run("train", CONFIG, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    done = run("eval", workdir)
    assert done.returncode == 2
    assert "--code my_package." in done.stderr
    done = run("eval", workdir, "--code", "my_package")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    (site / "my_package" / "layers.py").write_text("# another version")
    done = run("eval", workdir, "--code", "my_package")
    assert done.returncode == 2
    assert "is not the package that" in done.stderr
    elsewhere = str(Path(mmjax.__file__).parents[1])
    done = run("eval", workdir, "--code", "my_package", PYTHONPATH=elsewhere)
    assert done.returncode == 2
    assert "no module named 'my_package'; install" in done.stderr
