"""The rules of the house: who imports whom, sizes, names, and what may be committed."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmjax
from mmjax import config
from mmjax.parallel.mesh import AXES
from mmjax.parallel.rules import LOGICAL_AXES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mmjax"

# The floors of mmjax, from the ground up (DESIGN 4). What stands on one imports what is below, be
# it inside a function; what stands beside it on the same floor is a stranger. A name is a module,
# or a package and all in it; the longest one that fits counts. So packages form no circle.
FLOORS: tuple[set[str], ...] = (
    {"config.error", "config.ranges"},
    {"console", "errors", "typing"},
    {"files"},
    {"config", "processes"},
    {"parallel"},
    {"optim"},  # shares its work out over the mesh
    {"models"},
    {"objectives", "tokenizers"},
    {"modalities", "step"},
    {"data"},
    {"experiment"},
    {"run"},
    {"report.arrays", "report.frame"},
    {"report.charts", "report.gallery"},
    {"plan"},
    {"generate"},
    {"evaluate"},
    {"export", "report"},
    {"testing", "train"},
    {"extend", "tokenize", "train_tokenizer"},
    {"launch"},
    {"cli"},
    {"demo"},  # used by configs/ alone
)
# What a floor below does not open all the same: the step sees no config, data no parameters.
SHUT = {
    "step": ("config", "processes"),
    "data": ("models", "objectives", "optim", "step"),
    "modalities": ("models", "objectives", "optim", "parallel"),
    "launch": ("data", "evaluate", "experiment", "models", "report", "run", "step", "train"),
}
ROOM = ("", "__main__")  # the package itself, which imports the others when they are asked for
OLD = {  # names of modules that go with the next release; nothing of ours uses them
    "atomic": "files",
    "data_check": "cli.data_check",
    "data.deal": "data.schedules",
    "doctor": "cli.doctor",
    "evaluate.evaluator": "experiment",
    "evaluate.view": "run.view",
    "executables": "run.program",
    "heap": "cli.cpu",
    "listing": "cli.listing",
    "metrics": "run.metrics",
    "printing": "cli.printing",
    "program": "run.program",
    "rundir": "run.workdir",
}
OUTSIDE = {  # package -> the only modules of mmjax that may import it
    "torch": {"export.peer", "transfer"},  # the peer is a program of its own
    "transformers": {"export.peer", "transfer"},
    "tensorflow": {"data.source"},
}
BANNED_NNX = {"jit", "Optimizer", "scan", "grad", "value_and_grad"}
HEAVY = {
    "jax",
    "flax",
    "optax",
    "grain",
    "orbax",
    "tensorflow_datasets",
    "sentencepiece",
    "scipy",
    "sklearn",
    "soundfile",
    "PIL",
}


def is_alias(path: Path) -> bool:
    """Whether a module only stands for one that has moved, or that is public under this name."""
    return path.read_text().startswith(('"""Old name of', '"""Public name of'))


def modules(folder: Path = PACKAGE) -> list[Path]:
    # What lies in a template folder is data: files for others, never imported by mmjax.
    found = folder.rglob("*.py")
    found = (p for p in found if not {"__pycache__", "template"} & set(p.parts))
    return sorted(p for p in found if not is_alias(p))


def name_of(path: Path) -> str:
    """`data.source` for mmjax/data/source.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: use absolute imports"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def resolve(name: str) -> str | None:
    """The module of mmjax that an import reaches, without `mmjax.`; None = not ours."""
    if name != "mmjax" and not name.startswith("mmjax."):
        return None
    parts = name.split(".")[1:]
    while parts:
        path = PACKAGE.joinpath(*parts)
        if path.is_dir() or path.with_suffix(".py").is_file():
            break
        parts.pop()
    return ".".join(parts)


def floor(name: str) -> tuple[int, str]:
    """Number of the floor of a module, and the name there that it goes by."""
    fits = [
        (len(known), number, known)
        for number, names in enumerate(FLOORS)
        for known in names
        if name == known or name.startswith(f"{known}.")
    ]
    assert fits, f"mmjax.{name}: say in FLOORS where it stands"
    _, number, known = max(fits)
    return number, known


def is_allowed(source: str, target: str) -> bool:
    if not target or source in ROOM:
        return True
    (above, own), (below, other) = floor(source), floor(target)
    shut = any(target == name or target.startswith(f"{name}.") for name in SHUT.get(own, ()))
    return own == other or (below < above and not shut)


def test_layers():
    wrong = []
    for path in modules():
        source = name_of(path)
        for line, name in imports(path):
            target = resolve(name)
            if target is not None and not is_allowed(source, target):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {source} imports {target}")
            users = OUTSIDE.get(name.split(".")[0])
            if users is not None and source not in users:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name} is for {users}")
    assert not wrong, "\n".join(wrong)


def test_few_files_stand_on_top():
    alone = {p.stem for p in PACKAGE.glob("*.py") if not is_alias(p)} - {"__init__", "__main__"}
    assert len(alone) <= 8, sorted(alone)


def test_the_layer_test_sees_a_wrong_import(tmp_path):
    assert not is_allowed("models.moe", resolve("mmjax.data.source.Source") or "")
    assert not is_allowed("step", "config.error")
    assert not is_allowed("data.loader", "objectives.objective")
    assert not is_allowed("experiment", "evaluate.retrieval")
    assert not is_allowed("evaluate.generation", "demo.judges")
    assert not is_allowed("modalities.image", "step")  # the same floor
    assert is_allowed("report.gallery", "report.frame")
    assert not is_allowed("report.frame", "report.gallery")
    assert is_allowed("run.load", "run.checkpoint")
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from mmjax import config\n    import mmjax.data.task\n")
    assert list(imports(file)) == [(2, "mmjax.config"), (3, "mmjax.data.task")]


def test_recipes_stand_alone():
    wrong = []
    for path in modules(ROOT / "configs"):
        for line, name in imports(path):
            if name.split(".")[0] == "configs":
                wrong.append(f"{path}:{line}: a recipe imports {name}")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_module":
                given = [a.value for a in node.args if isinstance(a, ast.Constant)]
                if given != ["common.py"]:
                    wrong.append(f"{path}:{node.lineno}: only common.py of the family is shared")
    for path in modules():
        wrong += [f"{path}:{n}: {m}" for n, m in imports(path) if m.split(".")[0] == "configs"]
    assert not wrong, "\n".join(wrong)


def test_banned_nnx_names():
    wrong = []
    for path in [*modules(), *modules(ROOT / "configs")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or node.attr not in BANNED_NNX:
                continue
            if isinstance(node.value, ast.Name) and node.value.id == "nnx":
                wrong.append(f"{path}:{node.lineno}: nnx.{node.attr}")
        wrong += [
            f"{path}:{line}: {name}"
            for line, name in imports(path)
            if name.startswith("flax.nnx.") and name.rpartition(".")[2] in BANNED_NNX
        ]
    assert not wrong, "\n".join(wrong)


def test_sizes():
    wrong = []
    for path in [*modules(), *modules(ROOT / "configs"), *modules(ROOT / "benchmarks")]:
        text = path.read_text()
        if text.count("\n") > 500:
            wrong.append(f"{path}: {text.count(chr(10))} lines, 500 is the limit")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 80:
                    wrong.append(f"{path}:{node.lineno}: {node.name} has {length} lines of 80")
    assert not wrong, "\n".join(wrong)


def test_how_training_works_is_a_thousand_lines():
    names = ["train.py", "step.py", "objectives/objective.py", "models/transformer.py"]
    lines = {name: (PACKAGE / name).read_text().count("\n") for name in names}
    assert sum(lines.values()) <= 1000, lines


def test_nothing_outside_of_objectives_knows_one_by_its_class():
    """What differs between objectives they say themselves; `Objective` is the seam."""
    known = {"", "Objective", "Extra", "normalise_weights", "objective"}
    wrong = []
    for path in modules():
        if not name_of(path).startswith(("objectives", "demo", "testing")):
            for line, name in imports(path):
                head, _, last = name.rpartition(".")
                if "mmjax.objectives" in head and last not in known:
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert not wrong


def test_names_to_avoid():
    avoided = {"utils", "util", "helpers", "misc", "common_utils"}
    assert not [p for p in modules() if p.stem in avoided or p.parent.name in avoided]


# --------------------------------------------------------------------- fields of configs

READ_BY_AXIS = {"MeshConfig": AXES, "MeshRules": LOGICAL_AXES}  # by getattr(self, axis)


def names_read(tree: ast.AST) -> set[str]:
    """Attributes that code reads, by `.name` or `getattr(x, "name")`. A check in `__post_init__`
    makes no use of a field."""
    found, todo = set(), [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            found |= {a.value for a in node.args[1:2] if isinstance(a, ast.Constant)}
        todo += ast.iter_child_nodes(node)
    return found


def unread_fields(classes: dict[str, type], read: set[str]) -> list[str]:
    """`Class.field` of the config dataclasses whose field is not among the names read."""
    wrong = []
    for name, cls in classes.items():
        if dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen:
            own = [f.name for f in dataclasses.fields(cls) if f.name in cls.__annotations__]
            known = read | set(READ_BY_AXIS.get(name, ()))
            wrong += [f"{name}.{field}" for field in own if field not in known]
    return sorted(wrong)


def test_every_field_of_a_config_is_read():
    read = set().union(*(names_read(ast.parse(p.read_text())) for p in modules()))
    classes = {cls.__name__: cls for cls in config.seam_classes().values()}
    assert unread_fields(classes, read) == []


def test_the_search_for_unread_fields_finds_them():
    @dataclasses.dataclass(frozen=True)
    class Mine:
        used: int = 0
        named: int = 0
        checked: int = 0
        forgotten: int = 0

    text = """
class Mine:
    forgotten: int = 0
    def __post_init__(self):
        assert self.checked
def f(x):
    x.forgotten = 3
    return x.used + getattr(x, "named")
"""
    found = unread_fields({"Mine": Mine}, names_read(ast.parse(text)))
    assert found == ["Mine.checked", "Mine.forgotten"]


# -------------------------------------------------------------------- code from data

# Calls that run what they read, and the only places that may: code that the user names; what a
# process of ours gets from its parent; modules of mmjax by name; a folder just exported.
RUNS_CODE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads"),
    *("dill.load", "dill.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open"),
    *("torch.load", "numpy.lib.format.read_array", "yaml.load", "yaml.unsafe_load"),
    *("eval", "exec", "compile", "__import__", "importlib.import_module", "runpy.run_path"),
    *("runpy.run_module", "os.system", "os.popen", "code.interact", "ctypes.CDLL"),
}
UNLESS = {"allow_pickle": False, "shell": False, "trust_remote_code": False, "weights_only": True}
MAY_RUN_CODE = {
    ("testing/data.py", "pickle.loads"),  # of what it has pickled itself
    ("testing/require.py", "pickle.loads"),
    ("config/modules.py", "exec"),
    ("config/modules.py", "compile"),
    ("config/modules.py", "importlib.import_module"),
    ("config/classes.py", "importlib.import_module"),
    ("__init__.py", "importlib.import_module"),
    ("cli/cpu.py", "cloudpickle.load"),
    ("tokenize/run.py", "cloudpickle.loads"),  # of what the process that started it has pickled
    ("tokenize/beam.py", "cloudpickle.loads"),  # the same, by Beam's runner
    ("plan/planning.py", "compile"),  # the name of an argument
    ("export/peer.py", "trust_remote_code"),
}


def runs_code(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of each call of RUNS_CODE, and of each that is told to run what it reads."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0]
                      for a in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            head, dot, rest = ast.unparse(node).partition(".")
            if (name := f"{names.get(head, head)}{dot}{rest}") in RUNS_CODE:
                yield node.lineno, name
        if isinstance(node, ast.keyword) and node.arg in UNLESS:
            value = node.value
            if not (isinstance(value, ast.Constant) and value.value is UNLESS[node.arg]):
                yield value.lineno, node.arg


def test_nothing_that_is_read_is_run():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        found |= {(name, what): f"{name}:{line}: {what}" for line, what in runs_code(path)}
    assert not [text for place, text in found.items() if place not in MAY_RUN_CODE]
    assert set(found) == MAY_RUN_CODE  # no exception that nobody needs


def test_the_search_for_what_runs_code_finds_it(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "import pickle as p, numpy as np, os.path\nfrom torch import load as fetch\n"
        "def f(g=eval):\n    p.loads(b'')\n    np.load('a', allow_pickle=True)\n    fetch('b')\n"
        "    os.system('c')\n    run('d', shell=x)\n    np.load('e', allow_pickle=False)\n"
        "    model.eval()\n    load('f')\n"
    )
    found = {(3, "eval"), (4, "pickle.loads"), (5, "allow_pickle"), (6, "torch.load")}
    assert set(runs_code(file)) == found | {(7, "os.system"), (8, "shell")}


# ---------------------------------------------------------------------- tracked files

# Written so that this file does not find itself.
ADDRESS = r"(?:p[y]pi\.(?:org|io)|python[h]osted|n[p]mjs\.(?:org|com)|(?:deb|security)\.[d]ebian)"
MACHINE = r"(?:^|[^\w.\-/])(?:/roo[t]/|/wor[k]/|/hom[e]/\w|/User[s]/\w|/tmp/bash_job[s])"
LOCKS = r"(?:^|/)(?:uv\.lock|poetry\.lock|Pipfile\.lock|pylock[^/]*\.toml|package-lock\.json)$"


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_tracked_files_name_no_registry_machine_or_lock():
    wrong = [name for name in tracked() if re.search(LOCKS, name)]
    for name in tracked():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(ADDRESS, line) or re.search(MACHINE, line):
                wrong.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_the_search_for_addresses_finds_them():
    assert re.search(ADDRESS, "https://" + "py" + "pi.org/simple")
    assert re.search(MACHINE, "open('/" + "home/anna/x')")
    assert re.search(LOCKS, "sub/uv.lock")
    assert not re.search(LOCKS, "mmjax/lock")


def test_sources_are_ascii():
    wrong = [p for p in modules() if not p.read_bytes().isascii()]
    assert not wrong, wrong


# --------------------------------------------------------------------------- imports


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_what_a_config_imports_is_light():
    run(
        f"import sys, mmjax.experiment; heavy = {HEAVY!r} & set(sys.modules);"
        "assert not heavy, sorted(heavy)"
    )


def test_importing_mmjax_imports_nothing():
    run(
        "import sys; before = set(sys.modules); import mmjax;"
        "own = {m for m in sys.modules if m.startswith('mmjax')};"
        "assert own == {'mmjax'}, own; assert 'numpy' not in sys.modules"
    )


def test_public_names_resolve():
    for name in mmjax.__all__:
        assert getattr(mmjax, name) is not None
        assert name in dir(mmjax)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mmjax.nonsense


@pytest.mark.parametrize("old", OLD)
def test_old_names_of_modules_say_the_new_one(old):
    new = f"mmjax.{OLD[old]}"
    run(
        "import importlib, warnings\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        f"    import mmjax.{old} as module\n"
        f"assert module is importlib.import_module({new!r})\n"
        "(one,) = told\n"
        "assert one.category is DeprecationWarning and one.filename == '<string>', one\n"
        f"assert str(one.message).startswith('mmjax.{old} is now {new};'), one\n"
    )


def test_each_old_name_is_in_the_table():
    texts = {name_of(p): p.read_text() for p in PACKAGE.rglob("*.py")}
    found = {n for n, t in texts.items() if "mmjax.moved(" in t and "for_good" not in t}
    assert found == set(OLD)


def test_public_names_of_modules_that_lie_deeper_warn_of_nothing():
    run(
        "import warnings; warnings.simplefilter('error'); import mmjax;"
        "from mmjax import data_check; import mmjax.cli.data_check as module;"
        "assert data_check is mmjax.data_check is module and callable(mmjax.data_check)"
    )


def test_verbs_are_called_as_modules_and_as_functions():
    run(
        "import mmjax; from mmjax import config as c; import mmjax.config;"
        "import mmjax.load; from mmjax import load;"
        "assert callable(mmjax.load) and load is mmjax.load and load.load;"
        "from mmjax.load import load as function; assert function is load.load;"
        "assert callable(mmjax.train) and callable(mmjax.evaluate) and callable(mmjax.embed);"
        "assert callable(mmjax.generate) and mmjax.generate.generate;"
        "assert callable(mmjax.report) and mmjax.report.report;"
        "assert mmjax.train.train and mmjax.evaluate.evaluate;"
        "assert not callable(mmjax.config)"
    )
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'path'"):
        mmjax.load()


def test_the_core_needs_no_data_or_command_line_packages():
    names = [f"mmjax.{name_of(p)}" for p in modules()]
    core = {"models", "objectives", "optim", "parallel", "step", "checkpoint"}
    names = [n for n in names if n.split(".")[1:2] and n.split(".")[1] in core]
    assert len(names) > 10
    run(
        "import sys\n"
        "blocked = ('grain', 'tensorflow_datasets', 'tyro', 'array_record', 'tensorboardX')\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
    )
