"""The units of a job as an Apache Beam pipeline: for more machines than one.

Beam is no dependency of mmjax: it has an environment of its own (`make setup-beam`). A unit writes
its shard by itself and is the same whoever does it, however often, so a runner may repeat bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax import console, errors, files
from mmjax.config.error import ConfigError
from mmjax.experiment import Experiment
from mmjax.run import lock
from mmjax.tokenize import run as tokenizing
from mmjax.tokenize import shard, whole
from mmjax.tokenize.job import Job, Unit


def tokenize(
    experiment: Experiment, out: Any, *, options: Sequence[str] = (), **how: Any
) -> dict[str, Any]:
    """As `mmjax.tokenize.run.tokenize`, by a Beam runner; waits for its end.

    Args:
      options: of Beam, such as `["--runner=FlinkRunner"]`. how: of `job.make`.

    Raises:
      ConfigError: Beam is not installed, or DIR is on a disk that workers elsewhere do not see.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options import pipeline_options  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"--beam needs Apache Beam ({error}); make setup-beam installs it into .venv-beam, an"
            " environment of its own."
        ) from error
    import cloudpickle

    folder = files.given(out)
    with lock.lock(str(folder)):
        made = tokenizing.begin(experiment, folder, **how)
        units = made.units()
        todo = [tuple(unit) for unit in units if shard.known(made, unit) is None]
        console.say(f"{made.part}: {len(units)} shards, {len(units) - len(todo)} are there")
        settings = pipeline_options.PipelineOptions(list(options))
        settings.view_as(pipeline_options.SetupOptions).save_main_session = False
        content = cloudpickle.dumps(made)
        if todo:
            pipeline = beam.Pipeline(options=settings)
            _ = (
                pipeline
                | "units" >> beam.Create(todo)
                | "spread" >> beam.Reshuffle()
                | "tokenize" >> beam.ParDo(_function(beam)(content))
            )
            _wait(pipeline.run())
        return whole.finalize(folder, made.experiment.guards.allowed_bad)


def _wait(result: Any) -> None:
    state = str(result.wait_until_finish())
    if state not in ("DONE", "None"):
        raise errors.HostLost(
            f"The Beam pipeline ended as {state}; run the same command again, which makes what is"
            " missing."
        )


def _function(beam: Any) -> type:
    """The DoFn; Beam is imported only here."""

    class Tokenize(beam.DoFn):
        """One unit an element. What fails twice is noted beside its shard (`run.unit`)."""

        def __init__(self, content: bytes):
            self._content = content
            self._job: Job | None = None

        def setup(self):
            import cloudpickle

            self._job = cloudpickle.loads(self._content)

        def process(self, element):
            from mmjax.tokenize import run

            assert self._job is not None
            run.unit(self._job, Unit(*element))

    return Tokenize
