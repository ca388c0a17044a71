"""What may change between two starts of a run, by the identity class of each field.

    refused     model, tokens, data, numerics; data and tokenizers by their fingerprints
    journalled  weights of tasks: an event from the step of the resume on
    said        total_steps, init, guards, mesh and its rules

The manifest of the checkpoint decides, not `config.json`, which only names the fields that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from mmjax import config, console, files
from mmjax.data import mixture
from mmjax.experiment import Experiment
from mmjax.run import records

REFUSED = ("model", "tokens", "data", "numerics")  # kinds of fields that must not change
BY_CONFIG = "config"  # who weights in the journal are by
NOTES = {
    "total_steps": "learning-rate schedules that depend on it follow the new one from step {} on",
    "init": "it is not read again, as parameters come from step {}",
}


def identity(
    experiment: Experiment, format: int = config.FORMAT, *, before: bool = False
) -> dict[str, str]:
    """A hash for each kind of field that must not change (see `config.identity`)."""
    return {
        kind: config.fingerprint(config.identity(experiment, kind, format, before=before))
        for kind in REFUSED
    }


def fingerprints(experiment: Experiment) -> dict[str, str]:
    """Fingerprint of the data of each task; empty for a source that defines none."""
    out: dict[str, str] = {}
    for name, task in experiment.tasks.items():
        same = [n for n in out if experiment.tasks[n].source == task.source]
        try:
            out[name] = out[same[0]] if same else task.source.fingerprint()
        except NotImplementedError:
            out[name] = ""
    return out


def check(
    folder: epath.Path, experiment: Experiment, manifest: dict[str, Any], data: dict[str, str]
) -> list[str]:
    """Refuses changes that would make another run, and says those that are allowed.

    Args:
      manifest: of the checkpoint to resume from. data: `fingerprints` of now.

    Returns:
      The lines that were said.

    Raises:
      ConfigError: the workdir belongs to another experiment; names what differs.
    """
    known, remedy = manifest["identity"], "use another --workdir"
    form = manifest.get("config_format", 1)  # of the names of classes
    now, old = identity(experiment, form), identity(experiment, form, before=True)
    changed = [kind for kind in REFUSED if known.get(kind) not in (now[kind], old[kind])]
    if changed:
        problem = f"Workdir {folder}: belongs to another experiment ({', '.join(changed)} differ)"
        remedy += ", or the config that the run was started with."
        raise config.ConfigError(_refusal(folder, experiment, problem, remedy))
    for task, was in manifest.get("data", {}).items():
        if was and data.get(task) and data[task] != was:
            raise config.ConfigError(
                f"Workdir {folder}: task {task!r} was trained on data with fingerprint {was[:12]},"
                f" but its source has {data[task][:12]} now; restore the data, or {remedy}."
            )
    for name, modality in experiment.modalities.items():
        was, given = manifest["tokenizers"].get(name), modality.given_fingerprint()
        if was and given and given != was:
            raise config.ConfigError(
                f"Workdir {folder}: stream {name!r} was trained with tokenizer {was[:12]}, but the"
                f" config points to {given[:12]}; restore its path, or {remedy}."
            )
    lines = _weights(experiment, manifest) + _said(folder, experiment, manifest["step"])
    for line in lines:
        console.say(line)
    total, step = experiment.total_steps, manifest["step"]
    if 0 < total <= step:
        more = f"at step {step} already, and total_steps={total}: nothing to train"
        console.say(f"{folder}: {more}; a larger total_steps goes on")
    return lines


def _differences(folder: epath.Path, experiment: Experiment, kinds: Sequence[str]) -> list[str]:
    """Fields of these kinds that differ from `config.json`. Raises DamagedFile."""
    paths = [path for kind in kinds for path in config.identity(experiment, kind)]

    def is_of(head: str) -> bool:  # a field, what holds it, or an item of it that is gone
        holds = any(f"{path.partition('@')[0]}.".startswith(f"{head}.") for path in paths)
        return holds or any(head.startswith(f"{path}.") for path in paths if "@" not in path)

    lines = config.diff(records.read_config(folder)["config"], experiment)
    return [line for line in lines if is_of(line.partition(":")[0])]


def _refusal(folder: epath.Path, experiment: Experiment, problem: str, remedy: str) -> str:
    try:
        lines = _differences(folder, experiment, REFUSED)
        lines = lines or config.diff(records.read_config(folder)["config"], experiment)
    except files.DamagedFile as error:
        return (
            f"{problem}; which fields cannot be told, as config.json is damaged: {error}; {remedy}"
        )
    return f"{problem}:\n  " + "\n  ".join(lines[:20]) + f"\n{remedy}"


def _said(folder: epath.Path, experiment: Experiment, step: int) -> list[str]:
    """A line for each field that is said."""
    try:
        lines = _differences(folder, experiment, ("said",))
    except files.DamagedFile:
        return []  # it is written anew, and that is said
    notes = {name: note.format(step) for name, note in NOTES.items()}
    heads = [line.partition(":")[0].partition(".")[0] for line in lines]
    return [
        f"{line}{f'; {notes[head]}' if head in notes else ''}"
        for head, line in zip(heads, lines, strict=True)
    ]


def mesh_of(mesh: Any) -> dict[str, int]:
    """Axes of a mesh that have several devices."""
    return {axis: size for axis, size in mesh.shape.items() if size > 1}


def mesh_note(manifest: dict[str, Any], mesh: Any) -> str:
    """The end of a line that says that the mesh is another one, however it came to that."""
    was, now = manifest["mesh"], mesh_of(mesh)
    if was == now:
        return ""
    was, now = (" x ".join(f"{k} {v}" for k, v in m.items()) or "one device" for m in (was, now))
    return f"; the mesh was {was} and is {now}: numbers stay the same but for rounding"


def _weights(experiment: Experiment, manifest: dict[str, Any]) -> list[str]:
    """A line for each task whose weight the config has changed."""
    now = experiment.mixture.bind(experiment.tasks, experiment.seed).weights
    was = _configured(mixture.Journal.from_json(manifest["journal"]))
    return [
        f"weights of task {task!r}: {was[task]:g} -> {now[task]:g} from step {manifest['step']} on"
        for task in was
        if was[task] != now[task]
    ]


def course(experiment: Experiment, manifest: dict[str, Any] | None) -> mixture.Course:
    """The course of the mixture: begun, or that of a manifest, with changed weights journalled.

    Raises:
      ValueError: weights have changed, which this schedule has none of.
    """
    bound = experiment.mixture.bind(experiment.tasks, experiment.seed)
    event = {"weights": bound.weights, "by": BY_CONFIG}
    if manifest is None:
        return mixture.Course(bound, mixture.Journal().append(0, event))
    step, journal = manifest["step"], mixture.Journal.from_json(manifest["journal"])
    was = _configured(journal)
    if not was:  # of an earlier version, whose weights were part of the identity
        journal = journal.append(0, event)
    elif was != bound.weights:
        journal = journal.append(step, event)
    bound.steps_before(step, journal)
    return mixture.Course(bound, journal, manifest.get("schedule", {}))


def _configured(journal: mixture.Journal) -> dict[str, float]:
    """The weights of the config that hold at the end of a journal; empty if it has none."""
    known = [event["weights"] for _, event in journal.events if event.get("by") == BY_CONFIG]
    return known[-1] if known else {}
