"""`mmjax generate`, from files to files and a page, and its Python equivalent."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mmjax
from mmjax import console, files
from mmjax.config.code_file import Code
from mmjax.config.error import ConfigError, nearest
from mmjax.experiment import Experiment
from mmjax.files import bucket, confined, local
from mmjax.generate import sampling, sheet
from mmjax.generate.plan import Decoding
from mmjax.generate.rerank import contrasts
from mmjax.run import load
from mmjax.run.view import View
from mmjax.typing import Piece

CHUNK = 100  # samples that are decoded and written together
OTHER_FILES = "--out {out}: holds files that are no samples; name another folder, or --overwrite."
PLAIN = re.compile(r"[^/\\\x00.][^/\\\x00]*")  # a valid file name: no folder, not hidden
MAX_RECORD = 1 << 28  # bytes of `samples.json`
DRAWN = 0.7  # temperature for several samples, which would be equal at 0


def generate(
    view: View | str,
    given: Mapping[str, Any],
    plan: Sequence[Decoding | str],
    *,
    num: int = 1,
    seed: int = 0,
    code: Code = None,
) -> dict[str, list[Any]]:
    """`num` samples of each wanted modality, as raw values, by their names in `plan`.

    A name may be a modality of the run or its raw field: `audio` stands for the stream of audio
    codes if only that was trained. Sample i depends only on (seed, i).

    Args:
      view: from `mmjax.load(path)`, or a PATH.
      given: modality -> raw value. plan: modalities in decoding order, as names or `Decoding`; each
        is conditioned on those before.
      code: as for `mmjax.load`, with a PATH.

    Raises:
      ValueError: a modality was not trained for this, is both given and wanted, or has an invalid
        value.
    """
    view = load.load(view, code=code) if isinstance(view, str) else view
    if num < 1:
        raise ConfigError(f"num={num} makes no sample; use 1 or more.")
    experiment = view.program.experiment
    items = [Decoding(stream=i) if isinstance(i, str) else i for i in plan]
    streams = resolved(experiment, list(given), [i.stream for i in items])
    pieces = _encoded(experiment, streams, given)
    plan = _renamed(items, streams)
    samples = sampling.sample(view, [pieces] * num, plan, sample_seeds(seed, range(num)))
    decode = lambda item, s: experiment.modalities[streams[item.stream]].decode(
        s[streams[item.stream]]
    )
    return {item.stream: [decode(item, s) for s in samples] for item in items}


def write(
    path: str,
    given: Mapping[str, str],
    want: Sequence[str],
    out: str | Path,
    *,
    num: int = 1,
    seed: int = 0,
    temperature: float | None = None,
    steps: int = 0,
    guidance: float = 1.0,
    beams: int = 1,
    rerank: float = 0.0,
    overwrite: bool = False,
    code: Code = None,
    say: Callable[[str], None] = console.say,
) -> dict[str, Any]:
    """Generates files: `OUT/<modality>_<i>.<suffix>`, `samples.json` and `index.html`.

    Files are written sample by sample; repeating an interrupted call completes it. Returns the
    content of `samples.json`.

    Args:
      given: modality -> file, or text. want: modalities, in decoding order.
      temperature: None = 0 for one sample, 0.7 for several.
      steps: of parallel decoding; 0 = see `Decoding`.
      overwrite: replaces other samples in OUT.
      say: receives a message for each input that is cut or scaled.

    Raises:
      ConfigError, ValueError: as for `generate`; or OUT holds other files.
    """
    if files.is_remote(out):
        settings = {"steps": steps, "guidance": guidance, "beams": beams, "rerank": rerank}
        settings |= {"num": num, "seed": seed, "temperature": temperature, "overwrite": overwrite}
        return _write_remote(path, given, want, files.given(out), code=code, say=say, **settings)
    out = Path(out).expanduser()
    if num < 1:
        raise ConfigError(f"--num {num} makes no sample; use 1 or more.")
    if seed < 0:
        raise ConfigError(f"--seed {seed} must be 0 or more.")
    if not want:
        raise ConfigError("--want names nothing to make; name a modality, such as text.")
    before = _former(out, overwrite)
    view = load.load(path, code=code)
    experiment = view.program.experiment
    streams = resolved(experiment, list(given), want)
    if temperature is None:
        temperature = DRAWN if num > 1 else 0.0
    items = _plan(experiment, streams, want, temperature, steps, guidance, beams, rerank)
    plan = sampling.checked(experiment, [], _renamed(items, streams))
    values = {n: experiment.modalities[streams[n]].read(item) for n, item in given.items()}
    pieces = _encoded(experiment, streams, values, say)
    request = {
        "given": {n: {"value": v, "sha256": _digest(pieces[streams[n]])} for n, v in given.items()},
        "want": list(want),
        "plan": [dataclasses.asdict(item) for item in plan],
        "seed": seed,
        "run": path,
        "step": view.step,
        "mmjax": mmjax.__version__,
    }
    done = _begun(out, before, request, overwrite)
    todo = [i for i in range(num) if i not in done]
    shown = {n: v if isinstance(v, str) else Path(given[n]) for n, v in values.items()}
    try:
        for start in range(0, len(todo), CHUNK):
            part = todo[start : start + CHUNK]
            samples = sampling.sample(view, [pieces] * len(part), plan, sample_seeds(seed, part))
            for i, made in zip(part, samples, strict=True):
                named = {n: _file(experiment, streams[n], made, out / f"{n}_{i}") for n in want}
                done[i] = {"index": i, "files": named}
                _record(out, request, done)
    finally:
        sheet.write(out, shown, want, [done[i] for i in sorted(done)], request)
    return _record(out, request, done)


def _write_remote(
    path: str, given: Mapping[str, str], want: Sequence[str], out: Any, **settings: Any
) -> dict[str, Any]:
    """As `write`, to a folder of a bucket: made on this machine, then uploaded."""
    names = bucket.names(out)
    if names and "samples.json" not in names and not settings["overwrite"]:
        raise ConfigError(OTHER_FILES.format(out=out))
    with local.standing_for(out, last="samples.json") as folder:
        try:
            return write(path, given, want, folder, **settings)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(folder), str(out))) from error


# ------------------------------------------------------------------------------- names


def resolved(experiment: Experiment, given: Sequence[str], want: Sequence[str]) -> dict[str, str]:
    """The stream for each name: the name itself, or a trained stream with the same raw field.

    Raises ConfigError, naming the modality, if the run cannot read or generate it.
    """
    streams: dict[str, str] = {}
    sides = (
        ("--given", given, sampling.inputs(experiment), "an input"),
        ("--want", want, sampling.targets(experiment), "a target"),
    )
    for option, names, able, what in sides:
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{option} {name} is there twice; name each modality once.")
            if name not in experiment.modalities:
                raise ConfigError(
                    f"{option} {name}: the run has no such modality"
                    f"{nearest(name, experiment.modalities)}"
                )
            field = _field(experiment, name)
            alike = [n for n in (name, *able) if n in able and _field(experiment, n) == field]
            if not alike:
                usable = dict.fromkeys((*able, *(_field(experiment, n) for n in able)))
                usable = [n for n in usable if n in experiment.modalities]
                raise ConfigError(
                    f"{option} {name}: the run was not trained for it ({name} is {what} of no"
                    f" generative task); use one of {', '.join(usable) or 'none'}."
                )
            streams[name] = alike[0]
    for name in want:
        same = [n for n in given if _field(experiment, n) == _field(experiment, name)]
        if same:
            raise ConfigError(
                f"--want {name}: {same[0]} is given, which is the same; leave one of them out."
            )
        other = [n for n in want if n != name and streams[n] == streams[name]]
        if other:
            raise ConfigError(f"--want {name} {other[0]}: both are {streams[name]}; name one.")
    return streams


def _field(experiment: Experiment, name: str) -> str:
    return experiment.modalities[name].field or name


# ------------------------------------------------------------------------------ samples


def sample_seeds(seed: int, numbers: Sequence[int]) -> list[int]:
    """The seed of each sample, a function of (seed, number)."""
    digests = (hashlib.sha256(f"{seed} {i}".encode()).digest() for i in numbers)
    return [int.from_bytes(d[:4], "big") for d in digests]


def _encoded(
    experiment: Experiment,
    streams: Mapping[str, str],
    values: Mapping[str, Any],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Piece | None]:
    """Pieces by stream; reports values that are cut or scaled."""
    pieces = {}
    for name, value in values.items():
        modality = experiment.modalities[streams[name]]
        piece = pieces[streams[name]] = modality.encode(value)
        note = modality.adapted(value) if piece is not None else "is absent"
        if not note and piece is not None and piece.num_cut:
            note = f"{piece.num_cut} of {piece.num_cut + piece.length} tokens are cut from the end"
        if note:
            say(f"{name}: {note}")
    return pieces


def _renamed(items: Sequence[Decoding], streams: Mapping[str, str]) -> list[Decoding]:
    return [dataclasses.replace(i, stream=streams[i.stream]) for i in items]


def _plan(experiment, streams, want, temperature, steps, guidance, beams, rerank) -> list[Decoding]:
    """One item per name; `steps` applies to parallel decoding, `beams` to the rest, and `rerank` to
    streams with a contrast."""
    vocabulary = experiment.vocabulary()
    in_parallel = [n for n in want if vocabulary.spec(streams[n]).kind != "sequence"]
    if steps and not in_parallel:
        raise ConfigError(
            f"--steps {steps}: {', '.join(want)} is decoded token by token; leave --steps out."
        )
    if beams > 1 and len(in_parallel) == len(want):
        raise ConfigError(
            f"--beams {beams}: {', '.join(want)} is decoded in parallel; leave --beams out."
        )
    if rerank and beams == 1:
        raise ConfigError(f"--rerank {rerank:g} chooses among beams; add --beams 4 or more.")
    in_turn = [n for n in want if n not in in_parallel]
    # If no stream has one, all keep `rerank`, and `sampling.checked` reports that it has no effect.
    judged = [n for n in in_turn if contrasts(experiment, streams[n])] or in_turn
    return [
        Decoding(
            stream=name,
            steps=steps if name in in_parallel else 0,
            temperature=temperature,
            guidance=guidance,
            beams=1 if name in in_parallel else beams,
            rerank=rerank if name in judged else 0.0,
        )
        for name in want
    ]


# -------------------------------------------------------------------------------- files


def _former(out: Path, overwrite: bool) -> dict[str, Any] | None:
    """The `samples.json` of an earlier call, if any. Raises ConfigError if OUT is in use."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; name a folder.")
    with contextlib.suppress(files.DamagedFile):
        record = files.read_json(out / "samples.json")
        if _is_record(record):
            return record
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigError(OTHER_FILES.format(out=out))
    return None


def _is_record(value: Any) -> bool:
    """Whether an object has the form that `_record` writes, and names only files in its folder."""
    if not isinstance(value, dict) or not isinstance(value.get("request"), dict):
        return False
    samples = value.get("samples")
    return isinstance(samples, list) and all(
        isinstance(s, dict)
        and type(s.get("index")) is int
        and isinstance(s.get("files"), dict)
        and all(isinstance(f, str) and PLAIN.fullmatch(f) for f in s["files"].values())
        for s in samples
    )


def _is_there(out: Path, name: str) -> bool:
    """Whether a sample's file exists; links out of the folder do not count."""
    with contextlib.suppress(OSError, confined.Refused):
        os.close(confined.descriptor(out / name, out))
        return True
    return False


def _begun(
    out: Path, before: dict[str, Any] | None, request: dict[str, Any], overwrite: bool
) -> dict[int, dict[str, Any]]:
    """Samples, by number, that an earlier call with this request has written."""
    out.mkdir(parents=True, exist_ok=True)
    if before is None:
        return {}
    whole = [s for s in before["samples"] if all(_is_there(out, f) for f in s["files"].values())]
    if json.loads(json.dumps(request)) == before["request"]:
        return {s["index"]: s for s in whole}
    if not overwrite:
        changed = [k for k, v in request.items() if before["request"].get(k) != v]
        raise ConfigError(
            f"--out {out}: holds other samples ({', '.join(changed)} differ); name another folder,"
            " or --overwrite."
        )
    for file in (f for s in whole for f in s["files"].values()):
        (out / file).unlink()
    return {}


def _file(experiment: Experiment, stream: str, made: Mapping[str, Piece], stem: Path) -> str:
    """Writes a file atomically; returns its name."""
    modality = experiment.modalities[stream]
    partial = modality.write(modality.decode(made[stream]), stem.with_name(f".{stem.name}"))
    partial.replace(stem.with_name(partial.name[1:]))
    return partial.name[1:]


def _record(out: Path, request: dict[str, Any], done: dict[int, Any]) -> dict[str, Any]:
    record = {"request": request, "samples": [done[i] for i in sorted(done)]}
    files.write_json(out / "samples.json", record)
    return record


def _digest(piece: Piece | None) -> str:
    """Hash of the tokens that the model reads."""
    arrays = [] if piece is None else [piece.ids_L, piece.values_LP]
    data = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays if a is not None)
    return hashlib.sha256(data).hexdigest()
