"""Agreement of all processes on what they are about to train, before anything is compiled.

Processes that differ in config, code, packages, data or tokenizers would run different programs and
wait for each other for ever, or train on. Each tells what it has, the main one compares, and all
learn the outcome: three round trips to the coordinator a process, whatever their number.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import zlib
from typing import Any

from mmjax import config
from mmjax.config import code_file
from mmjax.config.code_file import Code
from mmjax.config.error import ConfigError
from mmjax.parallel import distributed
from mmjax.run import workdir as workdir_lib

__all__ = ["agree", "compare", "facts"]

CONFIG, TOKENIZERS = "config", "tokenizers"
SECONDS = 600.0  # for the slowest process to read the index of its data
READ = 5.0
SHOWN = 20  # differences in a message


def agree(experiment: Any, code: Code, data: dict[str, str], workdir: Any) -> None:
    """Returns where all processes are about to train the same; all must call it.

    Args:
      code: files and modules that came along. data: fingerprints of the data, by task.

    Raises:
      ConfigError: names the processes, their hosts, and the fields that differ.
    """
    store = distributed.store()
    if store is not None:
        name, own = distributed.fresh("agreement"), facts(experiment, code, data, workdir)
        compare(own, store, name, distributed.process(), distributed.count())


def facts(experiment: Any, code: Code, data: dict[str, str], workdir: Any) -> dict[str, Any]:
    """What must be the same on all processes."""
    start = workdir_lib.start_of(experiment, code)
    modalities = experiment.modalities.items()
    given = {name: modality.given_fingerprint() for name, modality in modalities}
    return {
        CONFIG: config.to_json(experiment),
        "workdir": str(workdir),
        "python": start["python"],
        "packages": start["packages"] | {"mmjax": start["mmjax"]},
        "code": {"config file": start["code_sha256"], **start["code_packages"]}
        | code_file.digests(["mmjax"]),
        "data": data,
        TOKENIZERS: {name: has for name, has in given.items() if has},
    }


def compare(
    facts: dict[str, Any], store: distributed.Store, name: str, process: int, count: int
) -> None:
    """Returns where all processes have the same facts; all must call it.

    Args:
      name: unlike that of any other call.

    Raises:
      ConfigError: as `agree`.
    """
    told = {"host": socket.gethostname(), "facts": facts}
    if process:
        store.put(f"{name}/{process}", _packed(told))
    store.meet(name, SECONDS)
    if process:
        outcome = store.get(f"{name} outcome", SECONDS)
    else:
        others = store.below(name)
        outcome = _outcome(facts, {int(i): _unpacked(text) for i, text in others.items()}, count)
        store.put(f"{name} outcome", outcome)
    if outcome:
        with contextlib.suppress(TimeoutError):  # the coordinator stays until all have read it
            store.meet(f"{name} read", READ)
        raise ConfigError(outcome)


def _outcome(own: dict[str, Any], others: dict[int, dict[str, Any]], count: int) -> str:
    """What differs from process 0; empty if nothing does."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for process, told in sorted(others.items()):
        lines = tuple(_differences(own, told["facts"]))
        if lines:
            alike.setdefault(lines, []).append(f"{process} ({told['host']})")
    if not alike:
        return ""
    text = []
    for lines, who in alike.items():
        more = f" and {len(who) - 4} more" if len(who) > 4 else ""
        text.append(f"  process {', '.join(who[:4])}{more}:")
        text += [f"    {line}" for line in lines[:SHOWN]]
        text += [f"    and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    differing = sum(map(len, alike.values()))
    return (
        f"{differing} of {count} processes differ from process 0 (its value -> theirs):\n"
        + "\n".join(text)
        + "\nstart all of them with the same config, code, packages and data."
    )


def _differences(own: dict[str, Any], other: dict[str, Any]) -> list[str]:
    lines = config.diff(own[CONFIG], other.get(CONFIG, {}))
    rest = [{k: v for k, v in f.items() if k not in (CONFIG, TOKENIZERS)} for f in (own, other)]
    # A tokenizer is copied into the workdir by the main process; others need not have it.
    known = [f.get(TOKENIZERS, {}) for f in (own, other)]
    both = [{TOKENIZERS: {k: f[k] for k in known[0] if k in known[1]}} for f in known]
    return lines + config.diff(*rest) + config.diff(*both)


def _packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()


def _unpacked(text: str) -> dict[str, Any]:
    return json.loads(zlib.decompress(base64.b64decode(text)))
