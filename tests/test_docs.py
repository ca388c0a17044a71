"""The code in the documentation runs, and the pages say what the program says."""

from __future__ import annotations

import ast
import fnmatch
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import small

import mmjax
from mmjax import cli, config, errors, models
from mmjax import step as step_lib
from mmjax.cli import listing
from mmjax.models import names, plan
from mmjax.run import matching

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ADD = (
    *("modality", "tokenizer", "source", "layout", "objective", "rule", "block", "router", "head"),
    *("schedule", "evaluator", "package"),
)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


def as_module(page: Path, folder: Path) -> Path:
    """The Python of a page as one file."""
    path = folder / f"{page.stem}.py"
    path.write_text("\n".join(blocks(page)))
    return path


@pytest.mark.parametrize("name", ADD)
def test_the_code_of_an_add_page_runs(name, tmp_path):
    path = as_module(DOCS / "add" / f"{name}.md", tmp_path)
    module = config.load_module(path)
    own = [c for c in vars(module).values() if getattr(c, "__module__", "") == module.__name__]
    made = 2 if name in ("block", "source", "router") else 1  # and its module, records, another
    assert len([c for c in own if isinstance(c, type)]) == made
    assert any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(path.read_text()))) or (
        "assert_allclose" in path.read_text() or "testing.check" in path.read_text()
    )


def test_the_code_of_the_page_of_maps_runs(tmp_path):
    config.load_module(as_module(DOCS / "maps.md", tmp_path))


def test_the_plans_of_the_page_of_blocks_are_models(tmp_path):
    module = config.load_module(as_module(DOCS / "blocks.md", tmp_path))
    plans = {n: m for n, m in vars(module).items() if isinstance(m, models.Transformer)}
    assert len(plans) == 9
    for model in plans.values():
        assert plan.flops_per_token(model, model.lane_names()[0], 8) > 0
    parts = {
        "flamingo": module.inserted_alone,
        "tuned": module.lora_alone,
    }
    for name, patterns in parts.items():
        made = step_lib.split(functools.partial(plans[name].make, small.VOCABULARY, {}, 0))
        where = plans[name].canonical_parts(small.VOCABULARY, (), list(names.flatten(made.params)))
        for pattern in patterns:
            assert any(fnmatch.fnmatch(key, pattern) for key in where), pattern


def test_the_recipe_of_the_docs_is_a_config(tmp_path):
    path = as_module(DOCS / "add" / "recipe.md", tmp_path)
    for function in ("get_config", "tiny"):
        assert isinstance(config.load(f"{path}:{function}"), mmjax.Experiment)
    (item,) = listing.recipes(tmp_path)
    assert item["paper"].startswith("Faghri")
    assert item["status"] == "simplified"


def test_the_examples_of_init_are_what_they_say(tmp_path):
    module = config.load_module(as_module(DOCS / "init.md", tmp_path))
    renamed = matching.renamed("enc/blocks/3/mlp/up", module.encoder.rename)
    assert renamed == "main/blocks/3/mlp/up"
    assert matching.matches("dec/blocks/3/mlp/up", module.upcycled.dense_to_experts)


@pytest.mark.slow
def test_the_example_of_the_page_of_plans_is_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = config.load_module(as_module(DOCS / "plan.md", tmp_path))
    assert module.plan.as_dict()["topology"] == "v5e-1"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r": ([\w/]+\.md)$", text, re.M))


def test_links_between_files_lead_somewhere():
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
    broken = []
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            target = link.partition("#")[0]
            if target and "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken, broken


def test_the_exit_codes_of_the_page_are_those_of_the_program():
    rows = re.findall(r"^\| (\d+) \| `(\w+)`", (DOCS / "errors.md").read_text(), re.M)
    written = {name: int(code) for code, name in rows}
    actual = {c.__name__: code for c, code in cli.EXIT_CODES.items() if c is not KeyboardInterrupt}
    actual[errors.Interrupted.__name__] = cli.EXIT_CODES[KeyboardInterrupt]
    assert written == actual


def test_the_command_page_has_every_verb_and_option():
    text = (DOCS / "commands.md").read_text()
    for verb, parser in cli.parsers().items():
        section = text.partition(f"## mmjax {verb}\n")[2].partition("\n## ")[0]
        assert section, verb
        options = [o for a in parser._actions for o in a.option_strings if o.startswith("--")]
        assert [o for o in options if o != "--help" and o not in section] == []


@pytest.mark.ci
def test_the_picture_is_well_formed():
    program = "import sys, xml.dom.minidom as m; m.parse(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, DOCS / "dataflow.svg"], check=True)


@pytest.mark.ci
def test_the_example_of_the_readme_runs(tmp_path):
    (block,) = blocks(ROOT / "README.md")
    assert len(block.splitlines()) <= 20
    code = block.replace("configs/quickstart.py", str(ROOT / "configs" / "quickstart.py"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "12 steps" in done.stdout
    assert "parameters" in done.stdout
    assert (tmp_path / "runs" / "readme" / "metrics.jsonl").exists()
