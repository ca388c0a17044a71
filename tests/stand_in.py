"""gcloud, kubectl, sbatch, squeue, sky, ssh and scp for tests, all of them this one program.

It notes each call and answers by the first rule that fits and is not used up; a call that no rule
fits succeeds and says nothing. `Commands` puts it on PATH; as a program it is run by those names.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = (
    "gcloud",
    "kubectl",
    "sbatch",
    "squeue",
    "sky",
    "ssh",
    "scp",
    "scancel",
    "scontrol",
    "srun",
)
HOSTS = ("python3", "mmjax")  # what hosts have: an installer, and the command that it installs


class Commands:
    """The commands of a test: `answer` says how they behave, `calls` what they were asked."""

    def __init__(self, folder: Path, monkeypatch, names: tuple[str, ...] = NAMES + HOSTS):
        self.folder = folder
        folder.mkdir()
        (folder / "bin").mkdir()
        for name in names:
            program = folder / "bin" / name
            text = Path(__file__).read_text()
            program.write_text(f"#!{sys.executable} -IS\n{text}")
            program.chmod(0o755)
        (folder / "rules").write_text("[]")
        monkeypatch.setenv("STAND_IN", str(folder))
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")

    def answer(self, *words: str, out: str = "", err: str = "", code: int = 0, times: int = -1,
               seconds: float = 0.0, host: bool = False) -> None:  # fmt: skip
        """Of calls that hold all the words: what they write, their exit code, how long they take.

        times: how many of them, -1 = all. host: ssh and scp do what they are asked, on this
        machine, each host in a folder of its name.
        """
        rules = json.loads((self.folder / "rules").read_text())
        rule = {"words": words, "out": out, "err": err, "code": code, "left": times}
        rules.append(rule | {"seconds": seconds, "host": host})
        (self.folder / "rules").write_text(json.dumps(rules))

    def forget(self) -> None:
        """All rules and calls."""
        (self.folder / "rules").write_text("[]")
        (self.folder / "notes").unlink(missing_ok=True)

    def calls(self, *words: str) -> list[list[str]]:
        """The calls that hold all the words, in order."""
        return [n["call"] for n in self._notes() if all(w in " ".join(n["call"]) for w in words)]

    def probes(self) -> set[str | None]:
        """The variable PROBE wherever mmjax was called."""
        return {n["probe"] for n in self._notes() if n["call"][0] == "mmjax"}

    def _notes(self) -> list[dict[str, Any]]:
        path = self.folder / "notes"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def host(self, name: str) -> Path:
        """The folder of a host, where it has its mmjax-NAME."""
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name


def main() -> int:
    folder, call = Path(os.environ["STAND_IN"]), [Path(sys.argv[0]).name, *sys.argv[1:]]
    rule = None
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (folder / "notes").open("a") as notes:
            notes.write(json.dumps({"call": call, "probe": os.environ.get("PROBE")}) + "\n")
        rules = json.loads((folder / "rules").read_text())
        for candidate in rules:
            if candidate["left"] and all(w in " ".join(call) for w in candidate["words"]):
                rule, candidate["left"] = candidate, candidate["left"] - 1
                break
        (folder / "rules").write_text(json.dumps(rules))
    if rule is None:
        return 0
    time.sleep(rule["seconds"])
    sys.stdout.write(rule["out"])
    sys.stderr.write(rule["err"])
    sys.stdout.flush()
    return as_host(folder, call) if rule["host"] else rule["code"]


def as_host(folder: Path, call: list[str]) -> int:
    """What the hosts would do."""
    if call[0] == "srun":  # one node
        return subprocess.run(call[1:], env={**os.environ, "SLURM_NODEID": "1"}).returncode
    rest = call[call.index("--") + 1 :] if call[0] != "gcloud" else call[5:]
    if call[0] == "scp" or call[4:5] == ["scp"]:
        host, _, path = rest[1].partition(":")
        (folder / host).mkdir(exist_ok=True)
        (folder / host / path).write_bytes(Path(rest[0]).read_bytes())
        return 0
    (folder / rest[0]).mkdir(exist_ok=True)
    return subprocess.run(["bash", "-c", rest[-1]], cwd=folder / rest[0]).returncode


if __name__ == "__main__":
    sys.exit(main())
