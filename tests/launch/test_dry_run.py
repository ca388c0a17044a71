"""Dry runs, word for word and as scripts that run; what is refused before anything is asked for.

tests/launch/golden holds what a dry run has other than the templates of launch/: `-` a line of a
template, `+` what stands there. python tests/launch/test_dry_run.py writes it anew.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mini
import pytest

import mmjax
from mmjax import cli
from mmjax.launch import filling, gke, sky, slurm, ssh
from mmjax.launch.job import Job
from mmjax.plan import planning

ROOT = Path(mmjax.__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
CACHE = ("--compile-cache", "gs://bucket/compiled")
NODES = ("--topology", "2xh100x8", "-n", "8")
CASES = {  # golden file -> arguments
    "pod": (
        *("tpu", "gs://bucket/run", "--topology", "v5e-64", "--zone", "us-west4-b", "--spot"),
        *("--name", "demo", "--project", "lab", *CACHE, "--", "--optimizer.learning_rate", "3e-4"),
    ),
    "multislice": ("tpu", "gs://bucket/run", "--topology", "2xv6e-256", "--zone", "us-east5-a"),
    "gke": ("gke", "gs://bucket/run", "--topology", "2xv5p-64", "--spot", "--image", "i@sha256:0"),
    "gke_gpu": ("gke", "gs://bucket/run", *NODES, "--image", "i@sha256:0", "--env", "A=1"),
    "slurm": ("slurm", "runs/a", *NODES, "--partition", "gpu", "--time", "1-00:00:00"),
    "sky": ("sky", "gs://bucket/run", *NODES, "--spot", "--cloud", "gcp/us-central1"),
    "ssh": ("ssh", "/shared/a", *NODES, "--hosts", "one,anna@two", "--env", "A=1"),
}
TEMPLATES = {  # golden file -> templates that its script holds, in this order
    "pod": ("tpu/pod.sh", "tpu/slices.sh"),
    "multislice": ("tpu/multislice.sh", "tpu/slices.sh"),
    "gke": ("gke/jobset.yaml", "gke/run.sh"),
    "gke_gpu": ("gke/jobset.yaml", "gke/run.sh"),
    "slurm": ("slurm/train.sbatch",),
    "sky": ("sky/train.yaml",),
    "ssh": ("ssh/hosts.sh",),
}
SHELL = sorted(p for p in (ROOT / "launch").rglob("*") if p.suffix in (".sh", ".sbatch"))


def arguments(name: str) -> list[str]:
    target, workdir, *more = CASES[name]
    return ["launch", target, f"{mini.QUICKSTART}:tiny", "--workdir", workdir, *more]


def inserted(args: list[str], *more: str) -> list[str]:
    cut = args.index("--") if "--" in args else len(args)
    return [*args[:cut], *more, *args[cut:]]


def written(name: str) -> str:
    """The dry run, without what is of this machine."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(inserted(arguments(name), "--dry-run")) == 0
    text = out.getvalue().replace(sys.executable, "/environment/bin/python")  # it may be in ROOT
    text = text.replace(str(ROOT), "/checkout")
    return text.replace(os.environ["XDG_CACHE_HOME"], "~/.cache")


def changed(name: str) -> str:
    """The dry run as changes to its templates, which with these say every line of it."""
    templates = "".join(filling.template(template) for template in TEMPLATES[name])
    lines = difflib.unified_diff(
        templates.splitlines(), written(name).splitlines(), n=0, lineterm=""
    )
    return "\n".join(list(lines)[2:]) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_golden_one(name):
    assert changed(name) == (GOLDEN / f"{name}.diff").read_text()


@pytest.mark.parametrize("name", ["pod", "gke", "slurm", "sky", "ssh"])
def test_the_script_of_a_dry_run_does_what_a_launch_does(name, commands, quick, tmp_path, capsys):
    """It runs, and asks the same of the same commands."""
    commands.answer("describe", out="ACTIVE\n")
    commands.answer("get jobset", "terminalState", out="Completed")
    assert cli.main(inserted(arguments(name), "--dry-run")) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    folder = tmp_path / "cache" / "mmjax" / "launch"
    shutil.rmtree(folder)
    assert subprocess.run(["bash", script], timeout=60).returncode == 0
    asked, (kept,) = commands.calls(), [p for p in folder.iterdir() if p.is_dir()]
    made = {p.name: p.read_text() for p in kept.iterdir() if p.suffix != ".gz"}
    shutil.rmtree(folder)
    commands.forget()
    commands.answer("describe", code=1, times=1)  # nothing of that name is there
    commands.answer("describe", out="ACTIVE\n")
    commands.answer("get jobset", "terminalState", out="Completed")
    assert cli.main(inserted(arguments(name), "--force")) == 0
    ours = commands.calls()
    looked = ours[0]  # whether something of that name is there
    assert sorted(ours) == sorted([*asked, looked] if name != "ssh" else asked)
    assert made == {p.name: p.read_text() for p in kept.iterdir() if p.suffix != ".gz"}


def documented() -> list[list[str]]:
    """The dry runs of the pages."""
    found = []
    for page in sorted((ROOT / "docs").glob("launch*.md")):
        lines = re.findall(r"^mmjax (launch .*--dry-run)$", page.read_text(), re.M)
        assert lines, page
        found += [shlex.split(line) for line in lines]
    return found


def test_from_a_clone_to_a_dry_run_is_one_command(monkeypatch, capsys):
    """Those of the pages, one at least for each target."""
    monkeypatch.chdir(ROOT)
    for args in documented():
        assert cli.main(args) == 0, args
        script = capsys.readouterr().out
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert "configs/quickstart.py:tiny" in script
    assert {args[1] for args in documented()} == {"tpu", "gke", "slurm", "sky", "ssh"}


@pytest.mark.ci
def test_the_first_dry_run_of_the_page_is_a_command(tmp_path):
    command = [sys.executable, "-m", "mmjax", *documented()[0]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Not asked here: mmjax plan configs/quickstart.py:tiny")


# ------------------------------------------------------------------------------ templates


def test_there_is_a_readme_in_each_folder():
    folders = [ROOT / "launch", *(p for p in (ROOT / "launch").iterdir() if p.is_dir())]
    assert [p for p in folders if not (p / "README.md").is_file()] == []
    assert len(folders) == 7


def test_templates_are_scripts_as_they_are():
    assert len(SHELL) == 6
    for path in SHELL:
        subprocess.run(["bash", "-n", path], check=True)


def test_scripts_pass_shellcheck(tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    inner = []  # and the scripts inside of YAML
    for name, key in (("gke/jobset", "- |"), ("sky/train", "setup: |"), ("sky/train", "run: |")):
        text = filling.template(f"{name}.yaml")
        begin = next(m for m in re.finditer(rf"^( *){re.escape(key)}\n", text, re.M))
        body = re.match(rf"((?: {{{len(begin[1]) + 2}}}.*)?\n)*", text[begin.end() :])
        path = tmp_path / f"{len(inner)}.sh"
        path.write_text("#!/usr/bin/env bash\n" + body[0])
        assert len(body[0].splitlines()) > 5
        inner.append(path)
    command = ["shellcheck", "--external-sources", *SHELL, *inner]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("value", ["a b; touch pwned", "$(x)", "it's", 'say "no"', "", "é\u2028"])
def test_a_value_is_nothing_but_a_value(value, tmp_path):
    script = tmp_path / "a.sh"
    text = 'A=before\nB=(before)\nprintf \'%s|\' "$A" "${B[@]}"\n'
    text = filling._in_shell(text, "A", value)
    script.write_text(filling._in_shell(text, "B", (value, value)))
    out = subprocess.run(["bash", script], capture_output=True, text=True, cwd=tmp_path).stdout
    assert out == f"{value}|" * 3
    yaml = pytest.importorskip("yaml")
    text = filling._in_yaml("- a:\n    b: before  # mmjax: B\n", "B", value)
    assert yaml.safe_load(text) == [{"a": {"b": value}}] or value == ""
    assert [p.name for p in tmp_path.iterdir()] == ["a.sh"]


# --------------------------------------------------------------------- what is refused


def refused(name: str, *more: str, code: int = 2, capsys) -> str:
    assert cli.main(inserted(arguments(name), *more)) == code
    return capsys.readouterr().err


@pytest.mark.parametrize("name", CASES)
def test_a_name_that_a_shell_would_read_is_refused(name, capsys):
    for bad in ("a b; touch pwned", "$(touch pwned)", "Demo_1", "-a", "a" * 41, ""):
        text = refused(name, f"--name={bad}", "--dry-run", capsys=capsys)
        assert "use small letters, digits and dashes, at most 40, a letter first" in text


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("gke", ("--hosts", "a"), "--hosts is for launch ssh, not gke"),
        ("ssh", ("--image", "i"), "--image is for launch gke, sky, not ssh"),
        ("slurm", ("--spot",), "--spot is for launch tpu, gke, sky, not slurm"),
        ("sky", ("--restarts", "1"), "--restarts is for launch local, not sky"),
        ("pod", ("--topology", "v5f-64"), "unknown; did you mean"),
        ("gke_gpu", ("-n", "3"), "a host of 2xh100x8 has 8 chips; use 1 or 8"),
        ("gke", ("--image", ""), "launch gke needs --image"),
        ("gke", ("--workdir", "runs/a"), "the disks of launch gke go with its machines"),
        ("slurm", ("--topology", "v5e-16", "-n", "1"), "Slurm has GPU nodes"),
        ("slurm", ("--time", "a day"), "write D-HH:MM:SS"),
        ("sky", ("--topology", "2xv5e-16", "-n", "1"), "SkyPilot has single slices of v4"),
        ("ssh", ("--hosts", "a,-oProxyCommand=x"), "write a name or USER@NAME"),
        ("ssh", ("--hosts", "a,a"), "a host stands there twice"),
        ("ssh", ("--hosts", "a,b,c"), "3 of them, and 2xh100x8 has 2"),
        ("ssh", ("--env", "A"), "--env A: write NAME=VALUE"),
        ("ssh", ("--env", "A-B=1"), "a letter or _ first"),
        ("ssh", ("--env", "A=1\ntouch pwned"), "no control characters"),
        ("gke", ("--retries", "0"), "--retries 0: use 1 or more"),
    ],
)  # fmt: skip
def test_what_is_refused(name, more, message, capsys):
    assert message in refused(name, *more, "--dry-run", capsys=capsys)


@pytest.mark.fault(
    "a run that does not fit its hosts is launched", "exit 3 before any is asked for"
)
def test_what_does_not_fit_is_not_launched(commands, monkeypatch, capsys):
    seen = []

    class Plan:
        fits, hbm_bytes, hbm_limit, remedies = False, 32 << 30, 16 << 30, ()

    monkeypatch.setattr(planning, "plan", lambda *args: seen.append(args[1]) or Plan())
    text = refused("gke_gpu", code=3, capsys=capsys)
    assert "does not fit 2xh100x8: 32.0 GiB a device of 16.0; use more or larger chips" in text
    assert "--force launches all the same" in text
    assert commands.calls() == []
    commands.answer("terminalState", out="Completed")
    assert cli.main(inserted(arguments("gke_gpu"), "--force")) == 0
    assert seen == ["2xh100x8"]
    assert commands.calls("apply")


@pytest.mark.slow
def test_the_plan_is_that_of_mmjax(commands, capsys):
    """Nothing is replaced: a million examples a step do not fit a T4."""
    huge = ["--tasks.masked.batch_size", "1048576"]
    args = ["launch", "slurm", f"{mini.QUICKSTART}:tiny", "--workdir", "w", "--topology", "t4"]
    assert cli.main([*args, "--", *huge]) == 3
    assert "does not fit t4: " in capsys.readouterr().err
    assert commands.calls() == []


@pytest.mark.parametrize(
    ("name", "words", "out", "message"),
    [
        ("gke", "get jobset mmjax", "jobset/mmjax\n", "kubectl delete jobset mmjax"),
        ("slurm", "squeue", "1234\n", "scancel --me --name=mmjax"),
        ("sky", "jobs queue", "ID NAME STATUS\n1 mmjax RUNNING\n", "sky jobs cancel --name mmjax"),
    ],
)  # fmt: skip
def test_a_name_that_runs_already_is_told(name, words, out, message, commands, capsys):
    commands.answer(words, out=out)
    text = refused(name, "--force", code=76, capsys=capsys)
    assert "--name mmjax: " in text
    assert message in text
    assert len(commands.calls()) == 1


def test_another_name_of_sky_is_no_hindrance(commands):
    commands.answer("jobs queue", out="ID NAME STATUS\n1 mmjax-2 RUNNING\n")
    assert cli.main(inserted(arguments("sky"), "--force")) == 0
    assert commands.calls("jobs launch")


@pytest.mark.parametrize(
    ("name", "program", "page"),
    [
        ("gke", "kubectl", "https://kubernetes.io/docs/tasks/tools"),
        ("slurm", "squeue", "on a login node of the cluster"),
        ("sky", "sky", "https://docs.skypilot.co"),
        ("ssh", "ssh", "https://www.openssh.com"),
    ],
)
def test_a_command_that_is_missing_names_its_page(
    name, program, page, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(tmp_path))
    text = refused(name, "--force", capsys=capsys)
    assert f"there is no {program} here: " in text
    assert page in text


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [("slurm", "sbatch", 70), ("sky", "jobs launch", 100), ("ssh", "-F log", 66)],
)
def test_the_code_of_the_run_comes_back(name, words, code, commands):
    commands.answer(words, code=code)
    assert cli.main(inserted(arguments(name), "--force")) == code


def job(**fields) -> Job:
    return Job(**{"config": str(mini.QUICKSTART), "workdir": "gs://b/r", "name": "demo", **fields})


@pytest.mark.parametrize("target", [gke, sky, slurm, ssh])
def test_what_comes_later_is_a_command_that_runs(target, commands, quick):
    commands.answer("terminalState", out="Completed")
    more = {"hosts": ("a",)} if target is ssh else {"image": "i", "topology": "h100x8"}
    made = job(**more)
    made.folder.mkdir()
    for name, text in target.files(made).items():
        (made.folder / name).write_text(text)
    for name, command in target.later(made):
        assert subprocess.run(command, timeout=60).returncode == 0, name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for case in CASES:
            (GOLDEN / f"{case}.diff").write_text(changed(case))
