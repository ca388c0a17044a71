"""Experiment: the one root dataclass, its settings, and every check that crosses fields."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from mmjax.config import ranges
from mmjax.config.error import nearest
from mmjax.data import augment
from mmjax.data.mixture import Mixture
from mmjax.data.task import Task
from mmjax.modalities.modality import Modality
from mmjax.models.config import ModelConfig
from mmjax.models.plan import Transformer
from mmjax.objectives.objective import Objective
from mmjax.optim.gradients import GradientRule
from mmjax.optim.optimizer import Muon, Optimizer
from mmjax.parallel.mesh import BATCH_AXES, MeshConfig
from mmjax.parallel.rules import MeshRules
from mmjax.typing import TokenSpec, Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """When to save and what to keep.

    Fields:
      every: steps between saves; 0 = at the end only. keep: newest ones kept, 0 = all.
      keep_every: steps whose multiples are kept for good; 0 = none.
    """

    every: ranges.Natural = 500
    keep: ranges.Natural = 3
    keep_every: ranges.Natural = 0

    def __post_init__(self):
        ranges.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guards:
    """When a run stops by itself.

    Fields:
      max_skipped_steps: steps in a row with a loss or gradient that is not finite (exit 70).
      max_bad_fraction: share of bad records of a split, in training and in evaluation (exit 65);
        one alone stops no run.
      strict: the first bad record of any source stops the run (exit 65).
      on_bad_shard: what becomes of a whole file that is cut, damaged, compressed or has links in
        it, among others: "refuse" ends the run (exit 2), "skip" leaves it out, names and counts it.
      hang_seconds: without a sign of another process, or of a step, after which the run ends (exit
        69); a step may take five times the longest before it. 0 = never.
    """

    max_skipped_steps: ranges.Natural = 20
    max_bad_fraction: ranges.Fraction = 0.01
    strict: bool = False
    on_bad_shard: Literal["refuse", "skip"] = dataclasses.field(
        default="refuse", metadata={"is_new": True}
    )
    hang_seconds: ranges.NonNegative = 10.0

    def __post_init__(self):
        ranges.check(self)

    @property
    def allowed_bad(self) -> float:
        """Share of bad records that is skipped: none in strict mode."""
        return 0.0 if self.strict else self.max_bad_fraction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """What is written while training, each `log_every` steps.

    Fields:
      tensorboard: also for TensorBoard. tracker: also to "wandb" or "trackio"; "" = to none.
      project: its project there; "" = mmjax.
      profile: FIRST:LAST, steps to trace for xprof, without the last; "" = none.
    """

    log_every: ranges.Count = 20
    tensorboard: bool = False
    tracker: Literal["", "wandb", "trackio"] = ""
    project: str = ""
    profile: str = ""

    def __post_init__(self):
        ranges.check(self)
        if self.tracker not in ("", "wandb", "trackio"):
            raise ValueError(
                f"Logging: tracker={self.tracker!r} must be 'wandb', 'trackio' or '' for none."
            )
        _ = self.profiled

    @property
    def profiled(self) -> range:
        """The steps that `profile` names."""
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", self.profile)
        if not self.profile:
            return range(0)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(
                f"Logging: profile={self.profile!r} must be FIRST:LAST, two steps of which the"
                " first is smaller, such as 100:110."
            )
        return range(int(match[1]), int(match[2]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How data are read: named splits, worker processes, batches prepared ahead.

    Fields:
      cache_bytes: memory of a host for encoded examples, over all sources and worker processes.
    """

    train_split: str = dataclasses.field(
        default="train", metadata={"identity": "data", "is_moved": True}
    )
    eval_split: str = "val"
    num_workers: ranges.Natural = 0
    prefetch: ranges.Natural = 4
    cache_bytes: ranges.Bytes = 1 << 29

    def __post_init__(self):
        ranges.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Base of all evaluators.

    Fields:
      every: steps between runs while training; 0 = at the end only.
    """

    every: ranges.Natural = 0

    def __post_init__(self):
        ranges.check(self)

    def check(self, view: Any) -> None:
        """Raises ValueError where `run` could not work, before anything is compiled.

        Opens what `run` will need: splits, galleries, judges. The view has no parameters yet.
        """
        del view

    def run(self, view: Any) -> dict[str, float]:
        """Metrics of a model bound to parameters (`mmjax.run.view.View`).

        What it writes belongs in `view.folder`, when that is not None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run().")

    def chance(self, view: Any) -> dict[str, float]:
        """Chance level of metrics, by name or by a part of names that follows an underscore."""
        del view
        return {}

    def baselines(self, view: Any, scores: dict[str, float]) -> dict[str, dict[str, float]]:
        """Metrics of simple methods that learned from the train split, by method, then by name.

        Computed once for a run and its data, by one process, at the end: no model is called.

        Args:
          scores: what `run` has found.
        """
        del view, scores
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
    """Parameters of another run to start from, by canonical name.

    A `*` of a pattern stands for any text, slashes included, as in `Task.trainable`.

    Fields:
      path: PATH of a run or checkpoint.
      select: patterns of the source's parameters that are taken.
      rename: pairs (pattern, replacement) of the source's names. The first pattern that matches
        counts; each `*` of its replacement is what the `*` at that place has matched.
      allow_new: patterns of parameters that may stay fresh; all others must be found.
      dense_to_experts: patterns of expert parameters that take a dense one of their name, a copy
        for each expert (sparse upcycling, Komatsuzaki et al. 2022, arXiv 2212.05055).
      router_state: whether routers also begin with what they keep across steps there, such as
        selection biases; without it tokens may go to other experts than there.
    """

    path: str
    select: tuple[str, ...] = ("**",)
    rename: tuple[tuple[str, str], ...] = ()
    allow_new: tuple[str, ...] = ()
    dense_to_experts: tuple[str, ...] = ()
    router_state: bool = dataclasses.field(default=False, metadata={"is_new": True})

    def __post_init__(self):
        if not self.path:
            raise ValueError("Init: path='' names no run; give the PATH of a run or checkpoint.")
        for field in ("select", "allow_new", "dense_to_experts"):
            if isinstance(getattr(self, field), str):
                given = getattr(self, field)
                raise ValueError(f"Init: {field}={given!r} must be a tuple; write ({given!r},).")
        for pair in self.rename:
            if isinstance(pair, str) or len(pair) != 2:
                raise ValueError(
                    f"Init: rename has {pair!r}, but holds pairs; write ((pattern, replacement),)."
                )
            stars = [len(re.findall(r"\*+", text)) for text in pair]
            if stars[1] > stars[0] or set("?[") & set(pair[0]):
                raise ValueError(
                    f"Init: rename has {pair!r}; wildcards are `*` alone, and a replacement has no"
                    " more of them than its pattern."
                )


class _Specs(Mapping):
    """Specs by modality, made when asked for: some read the files of a tokenizer."""

    def __init__(self, modalities: Mapping[str, Modality]):
        self._modalities = modalities

    def __getitem__(self, name: str) -> TokenSpec:
        return self._modalities[name].spec(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modalities)

    def __len__(self) -> int:
        return len(self._modalities)


def _check_name(field: str, name: str) -> None:
    """Raises ValueError for a name that would lead out of a folder, or match other names."""
    wrong = set(name) & set("/\\@*?[]") or not name.isprintable() or len(name.encode()) > 100
    if wrong or not name or name.startswith("."):
        raise ValueError(
            f"Experiment: {field} has {name[:100]!r}, but files are named after it; use letters,"
            " digits, - and _, at most 100, and no dot first."
        )


def _identity(kind: str, **kwargs):
    """A field whose change a resume refuses (model, tokens, numerics, data), journals or says."""
    return dataclasses.field(metadata={"identity": kind}, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: everything that configures it.

    Fields:
      modalities, tasks, evaluators: by name; a modality's name is the name of its stream.
      init: PATH of a run or checkpoint whose parameters to start from, or an `Init`, which takes a
        part of them or renames them; empty = fresh.
      sizes: what a recipe has taken from the data (`mmjax.data.sizes`): a resume reads it from
        config.json, so that it measures nothing and trains on what the run was started with.
      total_steps: optimizer steps over all tasks.
    """

    name: str = "run"
    seed: Annotated[int, ranges.Range(-(2**63), 2**63 - 1)] = _identity("numerics", default=0)
    modalities: dict[str, Modality] = _identity("tokens")
    model: ModelConfig = _identity("model", default=Transformer())
    tasks: dict[str, Task] = _identity("data")
    mixture: Mixture = _identity("data", default=Mixture())
    optimizer: Optimizer = _identity("numerics", default=Muon())
    gradient_rule: GradientRule | None = _identity("numerics", default=None)
    mesh: MeshConfig = _identity("said", default=MeshConfig())
    rules: MeshRules = _identity("said", default=MeshRules())
    checkpoint: Checkpointing = Checkpointing()
    evaluators: dict[str, Evaluator] = dataclasses.field(default_factory=dict)
    # str | Init; of such a union tyro makes a positional argument
    init: Any = _identity("said", default="")
    data: DataConfig = DataConfig()
    guards: Guards = _identity("said", default=Guards())
    logging: Logging = Logging()
    # Sizes | None; the modalities and tasks hold the values, so that nobody sets them here
    sizes: Any = dataclasses.field(
        default=None, metadata={"identity": "none", "is_new": True, "is_found": True}
    )
    total_steps: ranges.Natural = _identity("said", default=1000)

    def __post_init__(self):
        ranges.check(self)
        for field in ("modalities", "tasks", "evaluators"):
            for name in getattr(self, field):
                _check_name(field, name)
        for field in ("train_split", "eval_split"):
            _check_name(f"data.{field}", getattr(self.data, field))
        if not isinstance(self.init, (str, Init)):
            raise ValueError(f"Experiment: init={self.init!r} must be a PATH (str) or an Init.")
        if not self.tasks:
            raise ValueError("Experiment: tasks={} trains nothing; name at least one task.")
        for name, task in self.tasks.items():
            self._check_task(name, task)
        self.model.check(_Specs(self.modalities))
        self._check_extras()
        self._guard_sources()

    def _guard_sources(self) -> None:
        rule = self.guards.on_bad_shard
        if rule != "refuse":
            tasks = self.tasks.items()
            under = {n: dataclasses.replace(t, source=t.source.under(rule)) for n, t in tasks}
            object.__setattr__(self, "tasks", under)

    def _check_task(self, name: str, task: Task) -> None:
        who = f"Task {name!r}"
        if not isinstance(task.objective, Objective):
            kind = type(task.objective).__name__
            raise ValueError(f"{who}: objective is a {kind}, no Objective; see mmjax.objectives.")
        if not task.inputs and not task.targets:
            raise ValueError(f"{who}: inputs=() and targets=() read nothing; name modalities.")
        for modality in (*task.inputs, *task.targets):
            if modality not in self.modalities:
                raise ValueError(
                    f"{who}: modality {modality!r} is not in modalities"
                    f"{nearest(modality, self.modalities)}"
                )
        try:
            augment.check_task(task, self.modalities)
        except ValueError as error:
            raise ValueError(f"{who}: {error}") from error
        for variant, (_, batch_size, group_rows) in task.shapes().items():
            where = f" variant {variant!r}" if task.variants else ""
            if batch_size % group_rows:
                fits = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
                raise ValueError(
                    f"{who}{where}: batch_size={batch_size} is not whole groups of"
                    f" group_rows={group_rows}; use group_rows of {', '.join(map(str, fits[:12]))}."
                )
        try:
            task.objective.check(task, _Specs(self.modalities), self.model.lane_names())
            self.model.check_task(task)
        except ValueError as error:
            raise ValueError(f"{who}: {error}") from error
        self._check_router(who, task)

    def _check_router(self, who: str, task: Task) -> None:
        mixed = len(set(task.inputs) | set(task.targets)) > 1
        alone = not (task.objective.mixes_streams and mixed)
        for run in self.model.layer_plan():
            for block in run.pattern:
                if not alone or not block.balances_within_groups:
                    continue
                router = block.router or block
                raise ValueError(
                    f"{who}: router {type(router).__name__} balances inside groups of one modality,"
                    " which undoes specialisation; use TokenChoice, or allow_unmixed=True if meant."
                )

    def _check_extras(self) -> None:
        seen: dict[str, tuple[str, object]] = {}
        for name, task in self.tasks.items():
            for key, extra in task.objective.extra().items():
                other = seen.setdefault(key, (name, extra))
                if other[1] != extra:
                    raise ValueError(
                        f"Task {name!r}: extra {key!r} differs from the one of task {other[0]!r};"
                        " tasks that share a name share one definition."
                    )

    @property
    def warm_start(self) -> Init | None:
        """`init` in full: by a path alone, what the source lacks may stay fresh."""
        if isinstance(self.init, str):
            return Init(path=self.init, allow_new=("**",)) if self.init else None
        return self.init

    def check_mesh(self, num_devices: int) -> None:
        """Raises ValueError where batches do not divide over the mesh."""
        sizes = self.mesh.resolve(num_devices)
        shards = math.prod(sizes[axis] for axis in BATCH_AXES)
        for name, task in self.tasks.items():
            for variant, (_, batch_size, group_rows) in task.shapes().items():
                where = f" variant {variant!r}" if task.variants else ""
                groups = batch_size // group_rows
                if groups % shards:
                    rows = [n for n in range(1, batch_size + 1) if batch_size % (n * shards) == 0]
                    fit = f"group_rows of {', '.join(map(str, rows[-6:]))} or " if rows else ""
                    most = math.gcd(num_devices, groups)
                    raise ValueError(
                        f"Task {name!r}{where}: batch_size={batch_size} in groups of"
                        f" group_rows={group_rows} makes {groups} groups, which do not divide over"
                        f" the {shards} batch shards of the mesh; use {fit}batch_size of a multiple"
                        f" of {group_rows * shards}, or a mesh of {most} batch shards"
                        f" (tensor={num_devices // most})."
                    )

    def vocabulary(self) -> Vocabulary:
        """Streams in config order."""
        return Vocabulary(tuple(m.spec(name) for name, m in self.modalities.items()))

    def heads(self) -> dict:
        """Heads that the tasks' objectives need, the model's own ones first."""
        vocabulary, heads = self.vocabulary(), dict(getattr(self.model, "heads", {}))
        for task in self.tasks.values():
            inputs = tuple(vocabulary.spec(n) for n in task.inputs)
            targets = tuple(vocabulary.spec(n) for n in task.targets)
            for name, head in task.objective.heads(inputs, targets).items():
                heads.setdefault(name, head)
        return heads
