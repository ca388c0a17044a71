"""`mmjax export`: the encoder of a run and its projections as a Hugging Face folder."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import files, modalities
from mmjax.config import ConfigError
from mmjax.config.code_file import Code
from mmjax.export import card, describe, parity
from mmjax.files import bucket, local
from mmjax.modalities.text import Text
from mmjax.models import plan
from mmjax.run import checkpoint
from mmjax.run import load as load_lib
from mmjax.run.view import View
from mmjax.tokenizers.sentencepiece import SentencePiece

__all__ = ["arrays", "export", "write_decoders"]

TEMPLATE = Path(__file__).parent / "template"
DECODERS = ("sound", "sound_headers", "sound_media")
PARTS = ("encoder",)
NEEDED = ("torch", "transformers", "safetensors")


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    parts: str = "encoder",
    verify: bool = False,
    overwrite: bool = False,
    code: Code = None,
) -> dict[str, Any]:
    """Writes the folder and returns the content of its `parity.json`.

    It is written beside `out` and moved there when complete, so that `out` never holds a partial
    export.

    Args:
      path: WORKDIR, WORKDIR@STEP or WORKDIR@best:METRIC.
      out: a folder that is absent or empty, or, with `overwrite`, holds an older export.
      parts: `encoder` = the lanes and projections of the contrastive tasks.
      verify: loads the folder in transformers, in a process without mmjax, and compares the
        embeddings of raw validation files.

    Raises:
      ConfigError: the options are wrong, a package is missing, or the model has no PyTorch
        counterpart.
      NoCheckpoint: there is nothing to export. CheckFailed: the embeddings differ.
    """
    path, out = os.fspath(path), os.fspath(out)
    if files.is_remote(out):
        _checked_options(parts, verify)
        remote = files.given(out)
        _check_remote(remote, overwrite)
        with local.standing_for(remote, last="parity.json") as made:
            return export(path, made, parts=parts, verify=verify, overwrite=overwrite, code=code)
    target = _checked(out, parts, verify, overwrite)
    folder, _ = checkpoint.parse_path(path)
    describe.exported(load_lib.read_experiment(folder, code))
    view = load_lib.load(path, code=code, devices=jax.devices("cpu")[:1])
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    try:
        write(view, made)
        report = parity.verify(view, made) if verify else parity.unverified(view)
        (made / "README.md").write_text(card.card(view, target.name, report), encoding="utf-8")
        report["files"] = [entry.name for entry in files.entries(made)]
        files.write_json(made / "parity.json", report)
        _replace(target, made)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return report


def _replace(target: Path, made: Path) -> None:
    """Replaces an older export, and nothing else, with a new one."""
    if target.exists():
        there = {entry.name for entry in files.entries(target)}
        known = {*map(str, _listed(target) or there), "parity.json"}
        if there - known:
            raise ConfigError(
                f"--out {target}: holds {min(there - known)}, which no export wrote; move it away,"
                " or name another folder."
            )
        shutil.rmtree(target)
    made.rename(target)


def _listed(target: Path) -> list[Any]:
    """Files that an export lists; empty for older exports."""
    with contextlib.suppress(files.DamagedFile):
        listed = files.read_json(target / "parity.json").get("files")
        return listed if isinstance(listed, list) else []
    return []


def _checked(out: str, parts: str, verify: bool, overwrite: bool) -> Path:
    _checked_options(parts, verify)
    target = Path(out).expanduser().absolute()
    if target.is_symlink():
        raise ConfigError(f"--out {out}: is a link; name the folder that it leads to.")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--out {out}: is a file; name a folder.")
    if target.exists() and any(target.iterdir()):
        if not (target / "parity.json").exists():
            raise ConfigError(f"--out {out}: holds files that no export wrote; name another.")
        if not overwrite:
            raise ConfigError(f"--out {out}: holds an export; name another folder, or --overwrite.")
    return target


def _check_remote(out: Any, overwrite: bool) -> None:
    """Raises ConfigError if a folder of a bucket is in use."""
    names = bucket.names(out)
    if names and "parity.json" not in names:
        raise ConfigError(f"--out {out}: holds files that no export wrote; name another.")
    if names and not overwrite:
        raise ConfigError(f"--out {out}: holds an export; name another folder, or --overwrite.")


def _checked_options(parts: str, verify: bool) -> None:
    if parts not in PARTS:
        raise ConfigError(f"--parts {parts}: there is no such part; use {', '.join(PARTS)}.")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if verify and missing:
        raise ConfigError(
            f"--verify needs {', '.join(missing)}, not installed here; pip install 'mmjax[hf]'."
        )


def write(view: View, folder: Path) -> None:
    """Everything but the card and the parity report."""
    import safetensors.numpy

    experiment, tensors = view.program.experiment, arrays(view)
    widths = {
        name: tensors[f"project.{name}.kernel"].shape[1] for name in describe.exported(experiment)
    }
    folder.mkdir()
    for file in sorted(TEMPLATE.glob("*_mmjax.py")):
        shutil.copyfile(file, folder / file.name)
    write_decoders(folder)
    config = describe.model_config(experiment, widths)
    streams = describe.preprocessing(experiment)
    processor = {
        "processor_class": "MMJaxProcessor",
        "auto_map": {"AutoProcessor": config["auto_map"]["AutoProcessor"]},
        "streams": streams,
    }
    for name, content in (("config", config), ("processor_config", processor)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    for name, fields in streams.items():
        modality = experiment.modalities[name]
        if isinstance(modality, Text) and isinstance(modality.tokenizer, SentencePiece):
            (folder / fields["model_file"]).write_bytes(modality.tokenizer.model)
    weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)


def write_decoders(folder: Path) -> None:
    """The modules that decode sound, as they are, so that the processor hears what training did."""
    for module in DECODERS:
        code = (Path(modalities.__file__).parent / f"{module}.py").read_text()
        neighbour = r"from mmjax\.modalities\.(\w+) import"
        code = re.sub(neighbour, r"from .\1_mmjax import", code)
        (folder / f"{module}_mmjax.py").write_text(code, encoding="utf-8")


def arrays(view: View) -> dict[str, np.ndarray]:
    """Float32 arrays by their names in the PyTorch model.

    These are the canonical names with dots: `embed.<stream>.{stream, piece, ...}`,
    `tables.<stream>.table`, `lanes.<lane>.blocks.<n>...`, `project.<stream>.kernel`.
    """
    program = view.program
    experiment, model = program.experiment, program.experiment.model
    assert isinstance(model, plan.Transformer)
    lanes = describe.exported(experiment)
    owners = {describe.table_owner(program.vocabulary, name) for name in lanes}
    by_name: dict[str, Any] = {}
    for name, value in program.to_canonical(view.params).items():
        part, _, rest = name.partition("/")
        if part in lanes.values():
            by_name[f"lanes.{part}.{rest}"] = value
        elif part == "embed":
            stream, _, leaf = rest.rpartition("/")
            if (leaf == "table" and stream in owners) or (leaf != "mask" and stream in lanes):
                home = "tables" if leaf == "table" else "embed"
                by_name[f"{home}.{stream}.{leaf}"] = value
        elif part == "heads":
            head, _, leaf = rest.rpartition("/")
            if head.startswith("project/") and head[8:] in lanes:
                by_name[f"project.{head[8:]}.{leaf}"] = value
    for (r, p, n), (lane, number) in plan.block_places(model).items():
        block: Any = model.layer_plan()[r].pattern[p]
        if lane in lanes.values() and block.moe:
            bias_NE = view.model_state["runs"][r]["blocks"][p]["mlp"]["bias"]
            by_name[f"lanes.{lane}.blocks.{number}.mlp.bias"] = bias_NE[n]
    return {
        name.replace("/", "."): np.ascontiguousarray(np.asarray(value, np.float32))
        for name, value in by_name.items()
    }
