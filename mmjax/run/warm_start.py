"""Parameters that a run takes from another one (`Experiment.init`), on any mesh.

    source = warm_start.find(program)  # what goes where, before anything is compiled
    state = source.load(program.init_state())

The other run's parameters are restored onto the mesh of this one, and one jitted function moves
them to their places: no process holds or sends more than its shards.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from mmjax import console
from mmjax import step as step_lib
from mmjax.experiment import Experiment, Init
from mmjax.models import names as names_lib
from mmjax.parallel import distributed, together
from mmjax.run import checkpoint, load, matching
from mmjax.run import program as program_lib
from mmjax.run import workdir as workdir_lib
from mmjax.typing import Array, PyTree

__all__ = ["WarmStart", "find"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WarmStart:
    """A checkpoint to start from, and what of it goes where.

    Fields:
      program: of the run that starts. workdir, step: the checkpoint. source: its experiment;
        parts, canonical: of its model.
    """

    init: Init
    program: program_lib.Program
    workdir: epath.Path
    step: int
    source: Experiment
    parts: step_lib.Parts
    canonical: dict[str, names_lib.Part]
    match: matching.Match

    @property
    def takes_state(self) -> bool:
        """Whether the state beside the parameters comes along with them."""
        return self.init.router_state or self.program.experiment.model.state_is_learned

    def load(self, state: step_lib.TrainState) -> step_lib.TrainState:
        """The fresh state with parameters of the source; gives up the state that it is given.

        The optimizer and the extra state of objectives begin anew from these parameters, so that
        a teacher is a copy of what was loaded. Router state stays fresh unless `init` asks for it:
        the loads that it evens out were those of other tasks. A codebook comes along.
        """
        built, wanted = self.program, {"params": self._abstract()}
        if self.takes_state:
            sharding = jax.sharding.NamedSharding(built.mesh, jax.sharding.PartitionSpec())
            whole = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            wanted["model_state"] = jax.tree.map(whole, self.parts.model_state)
        found = checkpoint.restore(self.workdir, self.step, wanted)

        def begin(fresh: step_lib.TrainState, source: PyTree) -> step_lib.TrainState:
            params = self._placed(fresh.params, source["params"])
            extra = {name: e.init(params) for name, e in built.extras.items()}
            if self.takes_state:
                state = self._with_state(fresh.model_state, source["model_state"])
                fresh = fresh._replace(model_state=state)
            with step_lib.standard_promotion():
                return fresh._replace(params=params, opt_state=built.tx.init(params), extra=extra)

        # The old state is donated and all of it kept as arguments: the new one has its memory.
        how = {"out_shardings": built.shardings, "donate_argnums": 0, "keep_unused": True}
        state = together.jit(begin, **how)(state, found)
        for line in self._lines():
            console.say(line, distributed.is_main())
        return state

    def _abstract(self) -> PyTree:
        """Shapes and types of the source, sharded over this mesh by the rules of this run."""
        mesh, rules = self.program.mesh, self.program.experiment.rules

        def shaped(path, leaf):
            name = names_lib.path_name(path)
            try:
                spec = rules.spec(name, self.parts.axes[name], leaf.shape, mesh)
            except ValueError:  # it does not divide over this mesh: each device reads all of it
                spec = jax.sharding.PartitionSpec()
            sharding = jax.sharding.NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(shaped, self.parts.params)

    def _placed(self, params: PyTree, source: PyTree) -> PyTree:
        """Parameters with those of the source at their places."""
        leaves: dict[str, Array] = dict(names_lib.flatten(params))
        arrays: dict[str, Array] = dict(names_lib.to_canonical(source, self.canonical))
        for name, old in self.match.taken.items():
            part, value = self.program.canonical[name], arrays[old]
            leaf = leaves[part.path]
            value = value.astype(leaf.dtype)
            if name in self.match.copied:
                dim, num_experts = self.match.copied[name]
                value = jnp.repeat(jnp.expand_dims(value, dim), num_experts, axis=dim)
            leaves[part.path] = value if part.index is None else leaf.at[part.index].set(value)
        return jax.tree.structure(params).unflatten(leaves.values())

    def _with_state(self, fresh: PyTree, source: PyTree) -> PyTree:
        """Router state of the source by the names of blocks, where shapes agree."""
        leaves: dict[str, Array] = dict(names_lib.flatten(fresh))
        places = _named(self.program.experiment, list(leaves))
        there = names_lib.to_canonical(source, _named(self.source, list(names_lib.flatten(source))))
        known = {matching.renamed(name, self.init.rename): x for name, x in there.items()}
        for name, part in places.items():
            old, leaf = known.get(name), leaves[part.path]
            at = ... if part.index is None else part.index
            if old is not None and old.shape == leaf[at].shape:
                leaves[part.path] = leaf.at[at].set(old.astype(leaf.dtype))
        return jax.tree.structure(fresh).unflatten(leaves.values())

    def report(self) -> dict[str, Any]:
        """For run.json: what was loaded, is fresh, and was not used, by pattern with counts."""
        match = self.match
        return {
            "path": self.init.path,
            "step": self.step,
            "loaded": matching.by_pattern(match.taken),
            "copied_to_experts": matching.by_pattern(match.copied),
            "fresh": matching.by_pattern(match.fresh),
            "unused": matching.by_pattern(match.unused),
        }

    def _lines(self) -> list[str]:
        match, path = self.match, f"{self.workdir}@{self.step}"
        named = {
            f"init: {len(match.taken)} parameters are those of {path}": match.taken,
            f"init: {len(match.copied)} of them are copied to each expert": match.copied,
            f"init: {len(match.fresh)} are fresh": match.fresh,
            f"init: {len(match.unused)} of the source are not used": match.unused,
        }
        return [f"{k}: {matching.listed(matching.by_pattern(v))}" for k, v in named.items() if v]


def find(program: program_lib.Program) -> WarmStart | None:
    """What the experiment of a program starts from; None = fresh parameters.

    Raises:
      NoCheckpoint: `init` names no run. ValueError: its parameters do not fit.
    """
    init = program.experiment.warm_start
    if init is None:
        return None
    workdir, step, manifest, _ = checkpoint.choose(init.path)
    experiment = load.read_experiment(workdir, of=program.experiment)
    experiment = workdir_lib.ready_modalities(experiment, workdir, False, manifest)
    parts, canonical = program_lib.named_parts(experiment)
    target = names_lib.canonical_shapes(program.params, program.canonical)
    expert_dims = {}
    for name, part in program.canonical.items():
        axes = program.axes[part.path]
        if "expert" in axes:
            expert_dims[name] = axes.index("expert") + len(target[name]) - len(axes)
    source = names_lib.canonical_shapes(parts.params, canonical)
    return WarmStart(
        init=init,
        program=program,
        workdir=workdir,
        step=step,
        source=experiment,
        parts=parts,
        canonical=canonical,
        match=matching.match(init, source, target, expert_dims),
    )


def _named(experiment: Experiment, paths: list[str]) -> dict[str, names_lib.Part]:
    """Names of router state, as those of parameters of the same blocks."""
    vocabulary, heads = experiment.vocabulary(), tuple(experiment.heads())
    return experiment.model.canonical_parts(vocabulary, heads, paths)
