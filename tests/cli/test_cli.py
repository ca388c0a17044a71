"""The command line: help, options, exit codes, messages. Commands run as a user runs them."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from commands import run

import mmjax
from mmjax import cli, config, errors
from mmjax.cli import cpu, doctor, embed, printing

CODE = ("--code", "--code-sha256", "--compile-cache")
# The whole command line. A new option is a decision: change this with it.
OPTIONS = {
    "doctor": ["--code", "--code-sha256", "--json", "--topology", "--workdir", "CONFIG"],
    "list": ["--json", "KIND"],
    "recipes": ["--out", "NAME", "copy"],
    "data": ["--json", "--out", "--records", "CONFIG", "check"],
    "plan": ["--code", "--compile", "--compile-all", "--json", "--topology", "CONFIG"],
    "train": [*CODE, "--profile", "--workdir", "CONFIG"],
    "extend": [*CODE, "--profile", "--stage", "--workdir", "CONFIG"],
    "train-tokenizer": [*CODE, "--profile", "--workdir", "CONFIG"],
    "tokenize": [
        *("--add", "--beam", "--crops", "--out", "--shard-examples", "--splits", "--task"),
        *("--workers", "CONFIG"),
    ],
    "eval": [*CODE, "--json", "--split", "PATH"],
    "embed": [*CODE, "--given", "--out", "PATH"],
    "generate": [
        *("--beams", *CODE, "--given", "--guidance", "--num", "--out", "--overwrite"),
        *("--rerank", "--seed", "--steps", "--temperature", "--want", "PATH"),
    ],
    "export": [*CODE, "--out", "--overwrite", "--parts", "--verify", "PATH"],
    "info": ["--json", "--verify", "PATH"],
    "launch": [
        *("--account", "--cloud", "--compile-cache", "--coordinator", "--devices-per-process"),
        *("--dry-run", "--env", "--force", "--hosts", "--image", "--name", "--node-rank"),
        *("--nodes", "--num-processes", "--package", "--partition", "--project", "--python"),
        *("--restarts", "--retries", "--spot", "--time", "--topology", "--workdir", "--zone"),
        *("CONFIG", "TARGET"),
    ],
    "report": ["--json", "WORKDIR"],
}


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(
        textwrap.dedent(
            """
            import dataclasses

            @dataclasses.dataclass(frozen=True)
            class Small:
                width: int = 3

            def get_config():
                return Small()

            def bug():
                return len(3)

            def ours():
                import json
                return json.loads(3)
            """
        ).lstrip()
    )
    return path


# --------------------------------------------------------------------- help and options


def test_options_are_pinned():
    found = {}
    for verb, parser in cli.parsers().items():
        names = [a.option_strings[-1] if a.option_strings else a.metavar for a in parser._actions]
        found[verb] = sorted(n for n in names if n != "--help")
    assert found == OPTIONS
    assert list(found) == list(cli.VERBS)


def test_help_names_every_verb_quickly_and_without_jax():
    program = (
        "import sys; from mmjax import cli; cli.main(['--help']);"
        "heavy = {'jax', 'flax', 'numpy', 'tyro', 'grain', 'rich', 'etils'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    said = run("--help").stdout
    assert all(f"\n  {verb} " in said for verb in OPTIONS)

    def seconds(*arguments) -> float:
        """CPU time of a Python process."""
        used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        before = used()
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return used() - before

    bare = "import argparse, dataclasses, difflib, json, typing"
    pairs = [(seconds("-m", "mmjax", "--help"), seconds("-c", bare)) for _ in range(4)]
    ours, pythons = (min(column) for column in zip(*pairs, strict=True))
    assert ours < 4 * pythons  # about 3


@pytest.mark.parametrize("verb", list(OPTIONS))
def test_each_verb_has_help(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: mmjax {verb}")
    assert all(option in out for option in OPTIONS[verb])


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 2
    assert "usage: mmjax COMMAND" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0


# ---------------------------------------------------------------------------- exit codes


def test_every_error_class_has_its_code():
    documented = {
        config.ConfigError: 2,
        errors.CheckFailed: 3,
        errors.BadDataError: 65,
        errors.NoCheckpoint: 66,
        errors.HostLost: 69,
        errors.NumericsError: 70,
        errors.StorageError: 74,
        errors.Preempted: 75,
        errors.WorkdirBusy: 76,
        KeyboardInterrupt: 130,
    }
    assert documented == cli.EXIT_CODES
    own = {c for c in vars(errors).values() if isinstance(c, type)}
    assert {c for c in own if issubclass(c, errors.RunError)} - {errors.RunError} <= set(documented)


@pytest.mark.parametrize("error", [*cli.EXIT_CODES, errors.Interrupted])
def test_a_users_error_is_one_message(error, monkeypatch, capsys):
    def verb(args):
        raise error("what went wrong")

    monkeypatch.setitem(cli.VERBS, "info", verb)
    expected = next(c for e, c in cli.EXIT_CODES.items() if issubclass(error, e))
    assert cli.main(["info", "x"]) == expected
    assert capsys.readouterr() == ("", "mmjax info: what went wrong\n")
    monkeypatch.setenv("MMJAX_TRACEBACK", "1")
    assert cli.main(["info", "x"]) == expected
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setitem(cli.VERBS, "info", lambda args: int("x"))
    assert cli.main(["info", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_rules_that_mmjax_states_are_users_errors(monkeypatch, capsys):
    from mmjax.data import source

    monkeypatch.setitem(cli.VERBS, "info", lambda args: 1 / 0)
    assert cli.main(["info"]) == 1

    def rule(args):
        from mmjax.typing import TokenSpec

        TokenSpec(name="x", kind="grid", max_tokens=0)

    monkeypatch.setitem(cli.VERBS, "info", rule)
    capsys.readouterr()
    assert cli.main(["info"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    # NotImplementedError is no ValueError: a part that is not finished is a bug of its author
    monkeypatch.setitem(cli.VERBS, "info", lambda args: source.Source().splits())
    assert cli.main(["info"]) == 1


def test_storage_and_paths(monkeypatch, capsys):
    def full(args):
        raise OSError(28, "No space left on device", "runs/x")

    def absent(args):
        raise FileNotFoundError(2, "No such file or directory", args[0])

    monkeypatch.setitem(cli.VERBS, "info", full)
    assert cli.main(["info", "runs/x"]) == 74
    monkeypatch.setitem(cli.VERBS, "info", absent)
    assert cli.main(["info", "a.png"]) == 2
    assert "No such file or directory: 'a.png'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["train", "--workdir", "x"], "CONFIG comes before --workdir"),
        (["train", "{}"], "--workdir"),
        (["train", "{}:get_confg", "--workdir", "x"], "did you mean 'get_config'?"),
        (["train", "{}", "--workdir", "x", "--widht", "3"], "did you mean --width?"),
        (["train", "{}", "--workdir", "x", "--width", "a"], "'a'"),
        (["train", "{}", "--workdir", "x"], "gives a Small, not an Experiment"),
        (["train", "{}:bug", "--workdir", "x"], "broken.py:11: TypeError"),
        (["list", "modality"], "did you mean 'modalities'?"),
        (["info"], "PATH"),
        (["info", "x", "--verfy"], "--verfy"),
        (["embed", "x", "--given", "image", "--out", "e.npy"], "write MODALITY=VALUE"),
        (["embed", "x", "--given", "image=a", "--out", "e.txt"], "must be .npy or .parquet"),
        (["generate", "x", "--given", "a=b", "--out", "d"], "--want"),
        (["generate", "x", "--given", "a=b", "--want", "--out", "d"], "--want"),
        (["generate", "x", "--given", "image", "--want", "text", "--out", "d"], "MODALITY=VALUE"),
        (
            ["generate", "x", "--given", "a=b", "a=c", "--want", "text", "--out", "d"],
            "give each modality once",
        ),
        (
            ["generate", "x", "--given", "a=b", "--want", "text", "--out", "d", "--num", "0"],
            "--num 0 makes no sample",
        ),
        (
            ["generate", "x", "--given", "a=b", "--want", "text", "--out", "d", "--num", "two"],
            "invalid int value: 'two'",
        ),
    ],
)
def test_mistakes_on_the_command_line(args, message, broken, capsys):
    assert cli.main([a.format(broken) for a in args]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_mistake_in_a_library_call_of_a_config_is_not_hidden(broken, capsys):
    assert cli.main(["train", f"{broken}:ours", "--workdir", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_help_of_a_config_lists_its_fields(broken, capsys):
    assert cli.main(["train", str(broken), "--help"]) == 0
    assert "--width INT" in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m mmjax list --json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ----------------------------------------------------------------- verbs without a model


def test_list_names_the_parts_with_a_line_each():
    done = run("list", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = {kind: [i["name"] for i in items] for kind, items in found.items()}
    assert {"Text", "Image", "Audio"} <= set(names["modalities"])
    assert names["routers"]
    assert names["objectives"]
    assert names["evaluators"]
    assert all(item["does"] for items in found.values() for item in items)
    text = run("list", "modalities").stdout
    assert text.startswith("modalities\n  Actions ")
    assert len(names["modalities"]) >= 25


def test_list_tells_what_was_measured_of_tokenizers():
    from mmjax import models
    from mmjax.cli import listing

    items = {item["name"]: item for item in listing.listing("tokenizers")["tokenizers"]}
    assert {"SentencePiece", "Bins", "FSQ", "LFQ", "VQ", "ResidualVQ", "ProductVQ"} <= set(items)
    assert [row["name"] for row in items["LFQ"]["measured"]] == ["LFQ", "BSQ"]
    for name in ("FSQ", "LFQ", "VQ", "ResidualVQ", "ProductVQ"):
        for row in items[name]["measured"]:
            quantizer = eval(row["config"], vars(models))  # fields that are gone fail here
            assert (row["class"], row["codes"]) == (name, quantizer.num_codes)
            assert row["ids"] == 64
            assert 0 < row["usage"] <= 1 <= row["perplexity"] <= row["codes"]
            assert f"{row['psnr']:.1f} dB" in listing.text({"tokenizers": [items[name]]})
    assert "measured" not in items["SentencePiece"]


def test_list_reads_the_headers_of_recipes(tmp_path):
    from mmjax.cli import listing

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "method.py").write_text(
        '"""A method.\n\nPaper: A title,\n  of two lines.\nCatalogue: 7\n'
        'Status: exact\n\nMore."""\n'
    )
    (tmp_path / "a" / "common.py").write_text('"""Shared."""\n')
    (item,) = listing.recipes(tmp_path)
    assert item["does"] == "A method."
    assert item["paper"] == "A title, of two lines."
    assert (item["catalogue"], item["status"], item["result"]) == ("7", "exact", "")
    assert "paper: A title, of two lines." in listing.text({"recipes": [item]})


def test_doctor_says_that_this_machine_is_usable():
    start = time.monotonic()
    done = run("doctor", "--json", XLA_FLAGS="")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 20  # under 10 s where nothing else runs
    report = json.loads(done.stdout)
    assert report["usable"]
    assert report["self_test"]["seconds"] < 10
    assert report["devices"] == {"cpu (cpu)": 1}


def test_doctor_tells_what_does_not_work(monkeypatch, capsys):
    def fail():
        raise RuntimeError("no driver")

    monkeypatch.setattr(doctor, "_devices", fail)
    assert cli.main(["doctor"]) == 3
    out, err = capsys.readouterr()
    assert "PROBLEM   jax does not run: RuntimeError: no driver" in out
    assert err.startswith("mmjax doctor: jax does not run")


def test_embeddings_are_written_in_the_order_given(tmp_path):
    from pyarrow import parquet

    rows = [("image", "a"), ("text", "t"), ("image", "b")]
    found = {"image": np.array([[1.0, 1], [3, 3]]), "text": np.array([[2.0, 2]])}
    embed.write(tmp_path / "new" / "e.npy", rows, found)
    array_ND = np.load(tmp_path / "new" / "e.npy")
    assert array_ND.dtype == np.float32
    assert array_ND[:, 0].tolist() == [1, 2, 3]
    embed.write(tmp_path / "e.parquet", rows, found)
    table = parquet.read_table(tmp_path / "e.parquet").to_pydict()
    assert table["modality"] == ["image", "text", "image"]
    assert table["given"] == ["a", "t", "b"]
    assert table["embedding"] == [[1, 1], [2, 2], [3, 3]]


def test_sets_of_vectors_are_written_too(tmp_path):
    from pyarrow import parquet

    rows, sets_NLD = [("text", "a"), ("text", "b")], np.arange(12.0).reshape(2, 3, 2)
    embed.write(tmp_path / "e.npy", rows, {"text": sets_NLD})
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), sets_NLD)
    embed.write(tmp_path / "e.parquet", rows, {"text": sets_NLD})
    table = parquet.read_table(tmp_path / "e.parquet").to_pydict()
    assert table["embedding"] == sets_NLD.tolist()
    both = {"text": sets_NLD[:1], "image": np.zeros((1, 8, 2))}
    with pytest.raises(
        config.ConfigError, match=r"differ in shape \(text 3 x 2, image 8 x 2\).*a file for"
    ):
        embed.write(tmp_path / "f.npy", [("text", "a"), ("image", "b")], both)


def test_tables_show_values_with_chance():
    scores = {"retrieval": {"a_R@1": {"value": 0.5, "chance": 0.01}}, "loss": 1.25}
    assert printing.table(scores).splitlines() == [
        "retrieval/a_R@1  0.5000  (chance 0.01)",
        "loss             1.2500",
    ]
    assert printing.tree({"step": 1200, "mesh": {"data": 2}}).splitlines() == [
        "step" + " " * 21 + "1,200",
        "mesh",
        "  data" + " " * 19 + "2",
    ]
    assert printing.tree({"starts": [{"cpu": 2}, {"cpu": 4}]}).splitlines() == [
        "starts",
        "  1",
        "    cpu" + " " * 18 + "2",
        "  2",
        "    cpu" + " " * 18 + "4",
    ]


# ------------------------------------------------------------------- allocator settings


ARENA, FLAGS = cpu.SETTINGS["MALLOC_ARENA_MAX"], cpu.flags()["XLA_FLAGS"]


@pytest.mark.parametrize(
    ("environment", "arena", "flags"),
    [
        ({}, ARENA, FLAGS),
        ({"MALLOC_ARENA_MAX": "3"}, "3", FLAGS),  # the user's own setting stays
        ({"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}, ARENA, "--xla_cpu_max_isa=AVX2"),
        ({"JAX_PLATFORMS": "tpu"}, None, None),
        ({"MMJAX_MALLOC": "off"}, None, None),
    ],
)
def test_computing_commands_start_with_settings_for_cpu(environment, arena, flags, tmp_path):
    file = tmp_path / "show.py"
    file.write_text(
        "import os\nnames = ('MALLOC_ARENA_MAX', 'XLA_FLAGS')\n"
        "raise ValueError('found %s %s' % tuple(map(os.environ.get, names)))\n"
    )
    clean = (*cpu.SETTINGS, *cpu.flags(), cpu.MARKER)
    env = {**{k: v for k, v in os.environ.items() if k not in clean}, "JAX_PLATFORMS": "cpu"}
    env |= {"PYTHONPATH": os.path.dirname(os.path.dirname(mmjax.__file__)), **environment}
    command = [sys.executable, "-m", "mmjax", "train", str(file), "--workdir", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert f"found {arena} {flags}" in done.stderr
    assert done.stderr.count("\n") == 1  # the second start says nothing


def test_flags_that_a_jaxlib_may_not_know_are_left_out(monkeypatch):
    assert cpu.PRODUCTS in FLAGS  # of the pinned one, which the tests run with
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.11.0")
    assert cpu.flags() == {"XLA_FLAGS": cpu.LEVEL}


# --------------------------------------------------------------- config errors are quick


def test_a_mistyped_field_is_told_within_two_seconds(root):
    program = textwrap.dedent(
        """
        import sys
        from mmjax import cli
        args = ["train", "configs/quickstart.py", "--workdir", "x", "--optimizer.learning_rat", "1"]
        assert cli.main(args) == 2
        heavy = {"grain", "orbax", "tensorflow_datasets", "sentencepiece"} & set(sys.modules)
        assert not heavy, heavy
        if "jax" in sys.modules:
            from jax._src import xla_bridge
            assert not xla_bridge._backends
        """
    )
    done, seconds = cpu_seconds(program, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "did you mean --optimizer.learning_rate?" in done.stderr
    # Two seconds where these imports take half of one: machines differ, and a busy one is slower.
    assert seconds < 4 * cpu_seconds("import numpy, tyro", cwd=root)[1]


def cpu_seconds(program, *args, cwd):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, cwd=cwd
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


TINY = "configs/quickstart.py:tiny"
WRONG_FILE = """
from mmjax.data.layouts import Aligned
from mmjax.data.task import Task
from mmjax.demo.numbers import Numbers
from mmjax.objectives import InfoNCE
from mmjax.optim import AdamW

def get_config():
    shared = {"source": Numbers(), "inputs": ("image", "text"), "objective": InfoNCE()}
    return Task(**shared, layout=Aligned(), batch_size="eight")

def rate():
    return AdamW(
        learning_rate=True,
    )
"""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            [TINY, "--workdir", "{}/run", "--optimizer.grad_clip_norm", "-1"],
            "optimizer: Muon: grad_clip_norm=-1 must be a number of 0 or more.",
        ),
        (
            [TINY, "--workdir", "{}/run", "--logging.log_every", "0"],
            "logging: Logging: log_every=0 must be a whole number of 1 or more.",
        ),
        (
            [TINY, "--workdir", "{}/run", "--checkpoint.keep", "-1"],
            "checkpoint: Checkpointing: keep=-1 must be a whole number of 0 or more.",
        ),
        (
            [TINY, "--workdir", "{}/run", "--total_steps", "many"],
            "Experiment: total_steps='many' must be a whole number of 0 or more.",
        ),
        (
            ["{}/wrong.py", "--workdir", "{}/run"],
            "wrong.py:10: Task: batch_size='eight' must be a whole number of 1 or more.",
        ),
        (
            ["{}/wrong.py:rate", "--workdir", "{}/run"],
            "wrong.py:13: AdamW: learning_rate=True must be a number above 0.",
        ),
    ],
)
def test_a_number_outside_its_range_is_told_within_two_seconds(args, message, tmp_path, root):
    (tmp_path / "wrong.py").write_text(WRONG_FILE)
    program = textwrap.dedent(
        """
        import sys
        from mmjax import cli
        code = cli.main(["train", *sys.argv[1:]])
        if "jax" in sys.modules:
            from jax._src import xla_bridge
            assert not xla_bridge._backends
        sys.exit(code)
        """
    )
    done, seconds = cpu_seconds(program, *(a.format(tmp_path) for a in args), cwd=root)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mmjax train: ")
    assert done.stderr.endswith(f"{message}\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert seconds < 4 * cpu_seconds("import numpy, tyro", cwd=root)[1]


def test_the_commands_in_the_readme_exist(root):
    verbs = set(re.findall(r"mmjax ([\w-]+)", (root / "README.md").read_text())) & set(OPTIONS)
    assert verbs == set(OPTIONS)
