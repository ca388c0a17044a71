"""TrainState, init_state, make_train_step: pure functions over arrays.

    parts = split(lambda: model.make(vocabulary, heads, seed))
    shardings = state_shardings(parts, tx, {}, mesh, rules)
    state = init_state(parts, tx, {}, shardings)
    step = make_train_step(parts, tx, objective, shardings, group_rows=8, ...)
    state, metrics = step(state, batch)

Nothing here knows a config file, a modality or a source.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmjax.models.module import ModelState
from mmjax.models.weights import Placement
from mmjax.objectives import objective as objective_lib
from mmjax.objectives.balance import normalise_weights
from mmjax.optim import backward, freezing, gradients, optimizer
from mmjax.optim.taps import Taps
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel import rules as rules_lib
from mmjax.parallel import together
from mmjax.typing import Array, Batch, Metrics, PyTree, path_name


class TrainState(NamedTuple):
    """Everything that changes: one tree, one set of shardings for all executables.

    No rng (it is folded from seed and step) and no functions.
    """

    step: Array  # int32
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    extra: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A model taken apart without any array.

    Fields:
      graph: what `nnx.merge` needs beside arrays. params, model_state: shapes and dtypes.
      axes: logical axes by path of a parameter. matrices: how the optimizer sees each parameter.
      bounds: (low, high) by path, of parameters that an update clips.
      make: makes the module with fresh parameters.
    """

    graph: Any
    params: PyTree
    model_state: PyTree
    axes: dict[str, tuple[str, ...]]
    matrices: PyTree
    bounds: dict[str, tuple[float, float]]
    make: Callable[[], nnx.Module]


def split(make: Callable[[], nnx.Module]) -> Parts:
    """Takes a model apart without making it."""
    graph, params, state = nnx.split(nnx.eval_shape(make), nnx.Param, ModelState)
    axes, matrices, bounds = {}, {}, {}
    is_variable = lambda x: isinstance(x, nnx.Variable)
    for tree in (params, state):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]:
            meta, ndim = leaf.get_metadata(), len(leaf.shape)
            axes[path_name(path)] = meta["axes"]
            reduce = meta.get("reduce", ())
            if meta.get("bounds"):
                bounds[path_name(path)] = meta["bounds"]
            matrices[path_name(path)] = optimizer.matrix_of(meta["axes"], reduce, ndim)
    pure = nnx.as_pure(params)
    tree = jax.tree_util.tree_map_with_path(lambda p, _: matrices[path_name(p)], pure)
    return Parts(
        graph=graph,
        params=pure,
        model_state=nnx.as_pure(state),
        axes=axes,
        matrices=tree,
        bounds=bounds,
        make=make,
    )


def state_shardings(
    parts: Parts,
    tx: optax.GradientTransformation,
    extras: dict[str, objective_lib.Extra],
    mesh: jax.sharding.Mesh,
    rules: rules_lib.MeshRules,
) -> TrainState:
    """Named shardings of the whole state; optimizer leaves take their parameter's."""

    def spec(path, leaf):
        name = path_name(path)
        return rules.spec(name, parts.axes[name], leaf.shape, mesh)

    params = jax.tree_util.tree_map_with_path(spec, parts.params)
    none = jax.sharding.PartitionSpec()
    extra = jax.eval_shape(lambda p: {k: e.init(p) for k, e in extras.items()}, parts.params)
    specs = TrainState(
        step=none,
        params=params,
        model_state=jax.tree.map(lambda _: none, parts.model_state),
        opt_state=freezing.like_params(
            jax.eval_shape(tx.init, parts.params), parts.params, params, none
        ),
        extra=freezing.like_params(extra, parts.params, params, none),
    )
    return rules_lib.shardings(specs, mesh)


def init_state(
    parts: Parts,
    tx: optax.GradientTransformation,
    extras: dict[str, objective_lib.Extra],
    shardings: TrainState,
) -> TrainState:
    """Fresh state, made sharded: one jitted function with pinned out-shardings."""

    def init():
        _, params, model_state = nnx.split(parts.make(), nnx.Param, ModelState)
        params, model_state = nnx.as_pure(params), nnx.as_pure(model_state)
        extra = {name: e.init(params) for name, e in extras.items()}
        with standard_promotion():
            return TrainState(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), extra)

    return together.jit(init, out_shardings=shardings)()


def bind(
    parts: Parts,
    params: PyTree,
    model_state: PyTree,
    group_rows: int,
    dtype: str,
    training: bool = False,
    taps: Taps | None = None,
    placement: Placement | None = None,
):
    """The model with these arrays in it, ready for the model calls; `training` turns dropout on."""
    model: Any = nnx.merge(parts.graph, params, model_state)
    model.group_rows, model.compute_dtype, model.training = group_rows, dtype, training
    model.placement = placement or Placement(dtype=dtype, reduce_dtype=dtype)
    if taps is not None:
        model.taps = taps
    return model


@contextlib.contextmanager
def standard_promotion():
    """Promotion rules of jax's defaults: optax relies on them, our own code does not."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def eval_step(
    parts: Parts,
    objective: objective_lib.Objective,
    params: PyTree,
    model_state: PyTree,
    extra: PyTree,
    batch: Batch,
    *,
    group_rows: int,
    dtype: str = "float32",
) -> tuple[dict[str, Array], Metrics, dict[str, Array]]:
    """Losses (scalars by name), metrics and features of a batch; nothing is updated."""
    batch = normalise_weights(batch, objective.target_balance)
    model = bind(parts, params, model_state, group_rows, dtype)
    losses, metrics, _, features = objective(model, batch, jax.random.key(0), extra)
    return objective_lib.total(losses), metrics, features


def _gradient(parts, objective, mask, group_rows, placement, *, rule, rule_state, task):
    """(state, batch, key) -> (losses, gradient, what comes with the losses, state of the rule)."""

    def gradient(state: TrainState, batch: Batch, key: Array):
        train, frozen = freezing.partition(state.params, mask)

        def losses_of(train, taps=None):
            params = freezing.join(train, frozen)
            how = (group_rows, placement.dtype, True, taps, placement)
            model = bind(parts, params, state.model_state, *how)
            with jax.named_scope(type(objective).__name__):
                losses, metrics, record, features = objective(model, batch, key, state.extra)
                totals = objective_lib.total(losses)
            if aux := [x for name, x in record.items() if name.startswith("aux_loss")]:
                totals["aux"] = sum(aux[1:], aux[0])
            return totals, (metrics, record, features)

        whole = lambda grads: freezing.whole(grads, frozen, mask)
        if rule is not None:
            kept = state.extra.get(rule_state, {})
            return backward.gradient(losses_of, train, whole, rule, kept, task, key)
        totals, pullback, aux = jax.vjp(losses_of, train, has_aux=True)
        return totals, whole(pullback(jax.tree.map(jnp.ones_like, totals))[0]), aux, {}

    return gradient


def make_train_step(
    parts: Parts,
    tx: optax.GradientTransformation,
    objective: objective_lib.Objective,
    shardings: TrainState,
    *,
    seed: int,
    group_rows: int,
    dtype: str = "float32",
    grad_reduce_dtype: str = "",
    grad_clip_norm: float = 0.0,
    learning_rate_scale: float = 1.0,
    trainable: PyTree | None = None,
    task: str = "",
    rule: gradients.GradientRule | None = None,
    rule_state: str = "",
    extras: dict[str, objective_lib.Extra] | None = None,
    update_state: Callable[[PyTree, dict], PyTree] = lambda state, record: state,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One optimizer step as a `jax.jit` function `step(state, batch)`.

    The state is donated and comes back with the same tree, dtypes and shardings. When a loss or
    gradient is not finite nothing but the step count changes, and `skipped` is 1.

    Args:
      task: its name, which a rule is told. rule_state: the extra that holds the state of the rule;
        "" = it has none. grad_reduce_dtype: in which gradients of matrices are added up over
        devices; "" = `dtype`.
    """
    mask = trainable if trainable is not None else jax.tree.map(lambda _: True, parts.params)
    mesh = shardings.step.mesh

    how = {"rule": rule, "rule_state": rule_state, "task": task}
    specs = jax.tree.map(lambda s: s.spec, shardings.params)
    placement = Placement(specs, dtype, grad_reduce_dtype or dtype)
    gradient = _gradient(parts, objective, mask, group_rows, placement, **how)

    def step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = normalise_weights(batch, objective.target_balance)
        totals, grads, (metrics, record, features), kept = gradient(state, batch, key)
        loss = sum(totals.values(), jnp.zeros(()))
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        if grad_clip_norm:
            scale = grad_clip_norm / jnp.maximum(norm, grad_clip_norm)
            grads = jax.tree.map(lambda g: g * scale, grads)
        with standard_promotion(), jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        if learning_rate_scale != 1.0:
            updates = jax.tree.map(lambda u: u * learning_rate_scale, updates)
        params = freezing.within(parts.bounds, optax.apply_updates(state.params, updates))
        params, opt_state = freezing.keep(params, opt_state, state.params, state.opt_state, mask)
        extra = state.extra | ({rule_state: kept} if rule_state else {})
        for name, e in (extras or {}).items():
            if e.clock == "step" or name in objective.extra():
                extra[name] = e.update(extra[name], params, features, batch)
        model_state = freezing.hold(
            update_state(state.model_state, record), state.model_state, mask
        )
        new = TrainState(state.step, params, model_state, opt_state, extra)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        out = {"loss": loss, "grad_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32)}
        out |= {f"loss/{name}": value for name, value in totals.items()} | metrics
        out |= {n: v for n, v in record.items() if n.startswith(("load/", "overflow/"))}
        return new._replace(step=state.step + 1), out

    return jax.jit(
        step,
        in_shardings=(shardings, rules_lib.batch_sharding(mesh)),
        out_shardings=(shardings, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())),
        donate_argnums=0,
        compiler_options=mesh_lib.compiler_options(mesh),
    )
