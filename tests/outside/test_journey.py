"""The parts of the docs' pages, one file each, from training to export: no edit of mmjax."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mmjax import testing

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {
    "modality": "Thermal", "tokenizer": "Characters", "source": "Sums", "layout": "Ask",
    "objective": "Margin", "rule": "BetweenTasks", "block": "RunningMean", "router": "",
    "head": "DeepProjection", "schedule": "Curriculum", "evaluator": "Spread",
    "stem": "TwoLayers", "augmentation": "Solarize",
}  # fmt: skip
ONE_DEVICE = "--xla_backend_optimization_level=0"
CONFIG = """
    import dataclasses

    import numpy as np

    import mmjax
    import strangers as s
    from mmjax.data.layouts import Aligned
    from mmjax.data.mixture import Mixture
    from mmjax.experiment import Logging
    from mmjax.modalities.structured import Bins, Metadata
    from mmjax.modalities.text import Text
    from mmjax.models import Block, MoE, Run, Transformer
    from mmjax.objectives import MaskedTokens
    from mmjax.optim import AdamW


    def get_config():
        common = {"source": s.Heat(size=200), "batch_size": 16, "group_rows": 4}
        moe = MoE(num_experts=2, width=16, router=s.ROUTER(), block_rows=8)
        block = Block(moe=moe)
        return mmjax.Experiment(
            modalities={
                "text": Text(tokenizer=s.Characters(vocab_size=24), max_tokens=12),
                "heat": s.Thermal(size=8, patch=4),
            },
            model=Transformer(
                shape="encoder", width=32, num_heads=4,
                runs=(Run(pattern=(block, s.RunningMean()), repeats=2),),
                heads={"project/text": s.DeepProjection()},
                stems={"heat": s.TwoLayers()},
            ),
            tasks={
                "pair": mmjax.Task(
                    **common, inputs=("text", "heat"), layout=Aligned(), objective=s.Margin(),
                    weight=2.0,
                ),
                "ask": mmjax.Task(
                    **common, inputs=("heat",), targets=("text",), layout=s.Ask(),
                    objective=MaskedTokens(),
                ),
            },
            mixture=Mixture(period=4, schedule=s.Curriculum(last={"ask": 2.0}, steps=8)),
            gradient_rule=s.BetweenTasks(),
            optimizer=AdamW(learning_rate=3e-3),
            evaluators={"spread": s.Spread(modality="text", limit=20)},
            logging=Logging(log_every=1),
            total_steps=8,
        )
"""
HEAT = '''
    """Sums of the page on sources, with a picture that is as warm as the sum."""

    import dataclasses

    import numpy as np

    from strangers.source import Sums, SumsRecords


    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Heat(Sums):
        def keys(self):
            return (*super().keys(), "heat")

        def open(self, split):
            return HeatRecords(super().open(split).pairs)


    class HeatRecords(SumsRecords):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            a, b = example["digits"]
            return {**example, "heat": np.full((8, 8), a - b, np.float32)}
'''


def page(name: str) -> str:
    """The first code of a page: the part without what is tried with it."""
    text = (ROOT / "docs" / "add" / f"{name}.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A package of strangers' parts, and a config that uses every one."""
    folder = tmp_path_factory.mktemp("journey")
    package = folder / "strangers"
    package.mkdir()
    lines = []
    for name, kind in PAGES.items():
        (package / f"{name}.py").write_text(page(name))
        kinds = [kind] if kind else re.findall(r"^class (\w+)\(", page(name), re.M)[:1]
        lines.append(f"from strangers.{name} import {kinds[0]}")
        if name == "router":
            lines.append(f"ROUTER = {kinds[0]}")
    (package / "heat.py").write_text(textwrap.dedent(HEAT))
    lines.append("from strangers.heat import Heat")
    (package / "__init__.py").write_text("\n".join(lines) + "\n")
    (folder / "strange.py").write_text(textwrap.dedent(CONFIG))
    return folder


def run(folder: Path, *args: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": ONE_DEVICE}
    command = [sys.executable, "-m", "mmjax", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, check=False)


def done(made: subprocess.CompletedProcess) -> str:
    assert made.returncode == 0, made.stderr[-3000:]
    return made.stdout + made.stderr


@pytest.mark.ci
def test_every_seam_from_training_to_export(folder):
    done(run(folder, "train", "strange.py", "--workdir", "run", "--total-steps", "6"))
    # What of the config leads elsewhere is said; the rest goes on where it stopped.
    said = done(run(folder, "train", "strange.py", "--workdir", "run"))
    assert "resumed" in said
    refused = run(folder, "eval", "run")
    assert refused.returncode == 2
    assert "--code strangers" in refused.stderr
    code = ("--code", "strangers")
    assert "dimensions" in done(run(folder, "eval", "run", *code))
    assert "RunningMean" in done(run(folder, "info", "run"))
    done(run(folder, "embed", "run", "--given", "text=3 and 4", "--out", "z.npy", *code))
    assert (folder / "z.npy").exists()
    page = done(run(folder, "report", "run"))
    assert "report.html" in page
    for verb, said in (
        (("export", "run", "--out", "out"), r"block \w+|router \w+|modality 'heat'|tokenizer"),
        (
            ("generate", "run", "--given", "heat=x", "--want", "text", "--out", "made"),
            "does not decode",
        ),
    ):
        refused = run(folder, *verb, *code)
        assert refused.returncode == 2, refused.stderr
        assert re.search(said, refused.stderr), refused.stderr


def test_the_table_of_contributing_has_every_page_and_check():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"\(docs/add/(\w+)\.md\) \| `(check_\w+)`", text))
    assert set(rows) == set(PAGES)
    checks = {name for name in testing.__all__ if name.startswith("check_")}
    assert set(rows.values()) == checks
