"""Weights & Biases or trackio, which follow a run beside its own metrics."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from mmjax import config, console
from mmjax.config.error import ConfigError

__all__ = ["TRACKERS", "Tracker", "of"]

TRACKERS = {"wandb": "pip install wandb", "trackio": "pip install 'mmjax[obs]'"}


def of(experiment: Any, workdir: Any) -> Tracker | None:
    """The tracker that an experiment asks for. Raises ConfigError if it is not installed."""
    settings = experiment.logging
    if not settings.tracker:
        return None
    tree = config.to_json(experiment)
    return Tracker(settings.tracker, settings.project, experiment.name, workdir, tree)


def _module(kind: str) -> Any:
    if kind == "wandb":
        import wandb  # type: ignore[import-not-found]

        return wandb
    import trackio  # type: ignore[import-not-found]

    return trackio


class Tracker:
    """Rows of metrics, sent to a service; a run that resumes goes on under its name there.

    What goes wrong there never ends a run: it is said once, and the rest is kept by mmjax alone.

    Args:
      kind: a key of TRACKERS. project: in the service. name: of the run.
      workdir: the identity of the run there. tree: its config.

    Raises:
      ConfigError: the package is not installed.
    """

    def __init__(self, kind: str, project: str, name: str, workdir: Any, tree: dict[str, Any]):
        try:
            self._module = _module(kind)
        except ImportError as error:
            raise ConfigError(
                f"logging.tracker={kind!r}: the package {kind} cannot be imported ({error});"
                f" {TRACKERS[kind]}, or leave the tracker out."
            ) from error
        self._kind, self._active = kind, True
        place = os.fspath(workdir)
        label = f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
        how = {"project": project or "mmjax", "name": label, "config": {**tree, "workdir": place}}
        if kind == "wandb":
            how |= {"id": label, "dir": os.environ.get("WANDB_DIR", os.getcwd())}
        self._try(lambda: self._module.init(**how, resume="allow"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""
        self._try(lambda: self._module.log(dict(metrics), step=step))

    def close(self) -> None:
        """Ends the run there."""
        self._try(self._module.finish)

    def _try(self, call: Any) -> None:
        if not self._active:
            return
        try:
            call()
        except Exception as error:  # of the service or its network: the run itself is well
            self._active = False
            said = console.inline(f"{type(error).__name__}: {error}")
            console.say(f"{self._kind} is left out from here on ({said})")
