"""How far a set of tokens is, and what makes it one: the manifest and the data card.

DIR/tokens.json   parts, splits, shards with sizes and hashes; training needs it
DIR/README.md     the card, for people
"""

from __future__ import annotations

import collections
from typing import Any

from etils import epath

import mmjax
from mmjax import errors, files
from mmjax.config.error import ConfigError
from mmjax.data import reader, token_set
from mmjax.run import choose
from mmjax.tokenize import shard
from mmjax.tokenize.job import FIRST, JOB

CARD = "README.md"
NAMED = 8  # shards that a line names


def status(out: Any, verify: bool = False) -> dict[str, Any]:
    """How far each part of a set is.

    Args:
      verify: hash all shards, to find what has changed since they were written.

    Returns:
      `{"finished": bool, "parts": {part: {"shards", "done", "records", "rejected", "missing",
      "failed", "damaged"}}}`; lists name shards.

    Raises ConfigError for a folder that holds no tokens.
    """
    folder = files.given(out)
    jobs = _jobs(folder)
    try:
        whole = set(token_set.read_manifest(str(folder))["parts"])
    except ValueError:
        whole = set()
    parts = {part: _part(folder / part, job, verify) for part, job in jobs.items()}
    for part, about in parts.items():
        about["finished"] = part in whole and about["done"] == about["shards"]
        del about["shards_by_split"]
    return {"finished": all(p["finished"] for p in parts.values()), "parts": parts}


def _jobs(folder: Any) -> dict[str, dict[str, Any]]:
    begun = [p for p in files.children(folder, "*") if files.exists(p / JOB)]
    found = {p.name: files.read_json(p / JOB) for p in begun}
    if not found:
        raise ConfigError(
            f"{folder}: holds no tokens; mmjax tokenize CONFIG --out {folder} makes them."
        )
    return dict(sorted(found.items(), key=lambda item: (item[0] != FIRST, item[0])))


def _part(folder: Any, job: dict[str, Any], verify: bool) -> dict[str, Any]:
    """Counts of a part; `shards_by_split` are the sidecars."""
    missing, failed, damaged = [], {}, []
    shards: dict[str, list[dict[str, Any]]] = {}
    rejected: collections.Counter[str] = collections.Counter()
    for split, ends in job["splits"].items():
        shards[split] = []
        for number in range(len(ends)):
            path = folder / split / token_set.shard_name(number)
            name = f"{split}/{path.name}"
            about = _read(shard.sidecar_of(path))
            if about is None or not files.exists(path):
                missing.append(name)
                if (why := _read(shard.note_of(path))) is not None:
                    failed[name] = why
                continue
            is_changed = path.stat().length != about["bytes"]
            if not is_changed and verify:
                is_changed = choose.hash_file(path) != about["sha256"]
            damaged += [name] if is_changed else []
            rejected.update(about["rejected"])
            shards[split].append(about)
    done = [about for found in shards.values() for about in found]
    return {
        "shards": sum(map(len, job["splits"].values())),
        "done": len(done) - len(damaged),
        "records": sum(about["records"] for about in done),
        "rejected": dict(rejected),
        "missing": missing,
        "failed": failed,
        "damaged": damaged,
        "shards_by_split": shards,
    }


def _read(path: Any) -> dict[str, Any] | None:
    if not files.exists(path):
        return None
    try:
        return files.read_json(path)
    except files.DamagedFile:
        return None


def finalize(out: Any, max_bad: float = 0.01) -> dict[str, Any]:
    """Writes the manifest and the card of all parts; returns the manifest.

    Args:
      max_bad: largest share of rejected records (`Guards.max_bad_fraction`).

    Raises:
      CheckFailed: shards are missing, damaged or have failed; names them and the remedy.
      BadDataError: more records were rejected than allowed.
    """
    folder = files.given(out)
    jobs, parts = _jobs(folder), {}
    first = next(iter(jobs.values()))
    for part, job in jobs.items():
        about = _part(folder / part, job, verify=False)
        if part != FIRST and (about["missing"] or about["damaged"]):
            continue  # a part that is being added changes nothing until it is whole
        _check_whole(folder, part, about)
        _check_rejected(folder, part, about, max_bad)
        if (job["source"], job["splits"]) != (first["source"], first["splits"]):
            raise ConfigError(f"{folder}: part {part!r} is of other records; delete it.")
        parts[part] = {
            "streams": {
                name: {**stream, "tokenizer": _tokenizer(folder, name)}
                for name, stream in job["streams"].items()
            },
            "augment": job["augment"],
            "crops": job["crops"],
            "shards": {
                split: [{k: one[k] for k in ("bytes", "sha256", "records")} for one in found]
                for split, found in about["shards_by_split"].items()
            },
        }
    manifest = {
        "format": token_set.FORMAT,
        "mmjax": mmjax.__version__,
        "source": first["source"],
        "splits": first["splits"],
        "parts": parts,
    }
    files.write_bytes(folder / CARD, _card(folder, jobs, parts).encode())
    files.write_json(folder / token_set.MANIFEST, manifest)
    return manifest


def _check_whole(folder: Any, part: str, about: dict[str, Any]) -> None:
    if about["failed"]:
        name, why = next(iter(about["failed"].items()))
        raise errors.CheckFailed(
            f"{folder}/{part}: {len(about['failed'])} of {about['shards']} shards have failed, the"
            f" first, {name}, after {why['attempts']} attempts: {why['error']}. Mend its input, or"
            " leave it out (guards.on_bad_shard='skip' for files that cannot be read), and run the"
            " same command again."
        )
    bad = about["missing"] + about["damaged"]
    if bad:
        names = ", ".join(bad[:NAMED]) + (", ..." if len(bad) > NAMED else "")
        what = "missing" if about["missing"] else "cut or changed"
        raise errors.CheckFailed(
            f"{folder}/{part}: {len(bad)} of {about['shards']} shards are {what}: {names}. Run the"
            " same mmjax tokenize again, which makes these alone."
        )


def _check_rejected(folder: Any, part: str, about: dict[str, Any], max_bad: float) -> None:
    rejected = sum(about["rejected"].values())
    if rejected <= reader.most_bad(max_bad, about["records"]):
        return
    keys: dict[str, list[str]] = collections.defaultdict(list)
    for found in about["shards_by_split"].values():
        for one in found:
            for reason, named in one["rejected_keys"].items():
                keys[reason] += named
    text = "; ".join(
        f"{reason} in {count} ({', '.join(keys[reason][:NAMED])})"
        for reason, count in about["rejected"].items()
    )
    raise errors.BadDataError(
        f"{folder}/{part}: {rejected} of {about['records']} records were rejected, more than"
        f" max_bad_fraction={max_bad:g} allows: {text}. Repair or leave out these records, and"
        " delete their shards; or accept them: --guards.max_bad_fraction."
    )


def _tokenizer(folder: Any, stream: str) -> str:
    found = files.children(epath.Path(folder) / "tokenizers", f"{stream}@*")
    return f"tokenizers/{found[0].name}" if found else ""


def _card(folder: Any, jobs: dict[str, dict[str, Any]], parts: dict[str, Any]) -> str:
    """The data card, in Markdown."""
    lines = [
        "# Tokens",
        "",
        f"Made by `mmjax tokenize` (mmjax {mmjax.__version__}) from a source with fingerprint"
        f" `{next(iter(jobs.values()))['source'][:12]}`. Read it with"
        " `mmjax.data.token_set.TokenSet(path=...)` and the modalities of the config; what the ids"
        " mean is in `tokenizers/`.",
        "",
        "| stream | part | kind | ids | tokens at most | tokenizer |",
        "|---|---|---|---|---|---|",
    ]
    for part, about in parts.items():
        for name, stream in about["streams"].items():
            spec = stream["spec"]
            ids = spec["vocab_size"] or f"numbers, {spec['width']} a token"
            mark = spec["fingerprint"][:12] or "none"
            lines.append(
                f"| {name} | {part} | {spec['kind']} | {ids} | {spec['max_tokens']} | {mark} |"
            )
    lines += ["", "| part | split | shards | records | rejected |", "|---|---|---|---|---|"]
    for part in parts:
        about = _part(folder / part, jobs[part], verify=False)
        for split, found in about["shards_by_split"].items():
            rejected: collections.Counter[str] = collections.Counter()
            for one in found:
                rejected.update(one["rejected"])
            why = ", ".join(f"{count} {reason}" for reason, count in rejected.items()) or "0"
            records = sum(one["records"] for one in found)
            lines.append(f"| {part} | {split} | {len(found)} | {records} | {why} |")
    for part, about in parts.items():
        if about["crops"]:
            names = ", ".join(about["augment"])
            lines += [
                "",
                f"{part}: {about['crops']} variations of each training example ({names}).",
            ]
    return "\n".join(lines) + "\n"
