"""Contracts of the model side: blocks, routers, heads, objectives, gradient rules, evaluators."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax import step as step_lib
from mmjax.data import layouts
from mmjax.data.source import Source
from mmjax.data.task import Layout, Streams, Task
from mmjax.experiment import Evaluator
from mmjax.models import cache, names, plan, stems
from mmjax.models.block import BlockConfig
from mmjax.models.embed import Head, HeadContext
from mmjax.models.module import ModelState
from mmjax.models.routers import Router
from mmjax.models.stems import Stem
from mmjax.objectives.objective import Objective, total
from mmjax.optim.gradients import GradientRule
from mmjax.optim.gradients import check as check_returned
from mmjax.parallel import MeshConfig, rules
from mmjax.run.view import View
from mmjax.testing import data
from mmjax.testing.require import inert, require
from mmjax.typing import Batch, Tokens, TokenSpec, Vocabulary

TEXT = TokenSpec(name="text", kind="sequence", max_tokens=8, vocab_size=100, text=True)
IMAGE = TokenSpec(name="image", kind="grid", max_tokens=8, width=6, grid=(1, 2, 4))
SPECS = (TEXT, IMAGE)
PICTURE = TokenSpec(
    name="picture", kind="grid", max_tokens=6, width=32, grid=(1, 2, 3), piece=(4, 4, 2)
)


def small_model(**fields: Any) -> plan.Transformer:
    """A transformer of width 32 that compiles quickly."""
    base = {"shape": "encoder", "width": 32, "num_heads": 4, "mlp_width": 64, "moe": None}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    return plan.Transformer(**{**base, **layers, **fields})


def check_block(block: BlockConfig, model: plan.Transformer | None = None) -> None:
    """It makes named parameters, keeps shape and dtype, has a gradient, counts its FLOPs; if it is
    causal, decoding with its cache gives what one pass gives.

    Args:
      block: one that reads no lane or one that reads lane `enc`.
      model: one whose layer plan holds it; None = a small one.
    """
    inert(block, BlockConfig)
    if model is None:
        reads = (plan.Run(pattern=(plan.Block(lane="enc"),)),) if block.reads == "enc" else ()
        model = small_model(runs=(*reads, plan.Run(pattern=(block,), repeats=3)))
    vocabulary = Vocabulary(SPECS)
    parts = step_lib.split(functools.partial(model.make, vocabulary, {}, 0))
    where = model.canonical_parts(vocabulary, (), list(names.flatten(parts.params)))
    own = [name for name in where if name.startswith(f"{block.lane}/blocks/")]
    require(own, block, "make()", "its parameters have canonical names")
    flops = block.flops_per_token(model.stack(len(SPECS)), 8, 8)
    require(math.isfinite(flops) and flops >= 0, block, "flops_per_token()", "a number from 0 on")
    params, state = _arrays(parts)
    source, tokens = (_view(vocabulary, spec, rows=4) for spec in (IMAGE, TEXT))
    wide = np.random.default_rng(0).normal(size=(4, 8, model.width)).astype(np.float32)

    def run(params, cached: bool):
        bound = step_lib.bind(parts, params, state, 4, "float32")
        memory = bound.encode(source) if block.reads else None
        whole = bound.decode(tokens, memory) if memory is not None else bound.encode(tokens)
        if not cached:
            return whole.x_BLD
        kept, made = cache.init_cache(bound, rows=4, length=8, memory=memory), []
        for i in range(8):
            one = jax.tree.map(lambda x, i=i: x[:, i : i + 1], tokens)
            x_B1D, kept = cache.decode_step(bound, one, kept)
            made.append(x_B1D)
        return jnp.concatenate(made, axis=1)

    grads = jax.jit(jax.grad(lambda p: jnp.sum(run(p, False) * wide)))(params)
    finite = all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    require(finite, block, "__call__()", "gradients are finite")
    if not block.is_causal:
        return
    whole, stepped = (np.asarray(jax.jit(run, static_argnums=1)(params, c)) for c in (False, True))
    real = np.asarray(tokens.segment_BL) > 0
    close = np.allclose(whole[real], stepped[real], atol=1e-4)
    require(close, block, "decode_step()", "decoding token by token gives what one pass gives")


def check_router(router: Router, num_experts: int = 4, num_streams: int = 2) -> None:
    """One form of routing, padding left out, groups by themselves, a state of the same tree."""
    inert(router, Router)
    rng = np.random.default_rng(0)
    x_WTD = jnp.asarray(rng.normal(size=(2, 16, 8)), jnp.float32)
    logits = jnp.asarray(rng.normal(size=(2, 16, num_experts)), jnp.float32)
    stream = jnp.asarray(rng.integers(0, num_streams + 1, (2, 16)), jnp.int32)
    state = router.init_state(num_experts, num_streams)

    @jax.jit
    def route(x, logits, stream):
        key = jax.random.key(0) if router.draws else None
        shown = logits if router.uses_logits else None
        return router.route(x, shown, state, stream, stream > 0, key)

    told = lambda condition, rule: require(condition, router, "route()", rule)
    routing = route(x_WTD, logits, stream)
    forms = (routing.expert_WTX, routing.token_WEC, routing.dispatch_WTEC)
    told(sum(form is not None for form in forms) == 1, "one form of Routing is set")
    told(all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(routing)), "it is finite")
    if routing.expert_WTX is not None:
        told(routing.expert_WTX.dtype == jnp.int32, "numbers of experts are int32")
        inside = (routing.expert_WTX >= 0) & (routing.expert_WTX < num_experts)
        told(bool(jnp.all(inside | (routing.weight_WTX == 0))), "chosen experts are 0..E - 1")
        unused = jnp.where((stream > 0)[..., None], 0.0, routing.weight_WTX)
        told(bool(jnp.all(unused == 0)), "padding has weight 0")
    if not router.draws:
        alone = route(x_WTD[:1], logits[:1], stream[:1])
        for a, b in zip(jax.tree.leaves(routing), jax.tree.leaves(alone), strict=True):
            same = np.ndim(a) == 0 or np.allclose(np.asarray(a)[:1], b, atol=1e-6)
            told(same, "a group does not depend on the others")
    load = jnp.asarray(rng.integers(0, 9, (num_streams + 1, num_experts)), jnp.float32)
    new = router.update(state, {"load": load})
    shapes = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
    require(shapes(new) == shapes(state), router, "update()", "the state keeps tree, shape, dtype")


def check_head(head: Head, x: Any, specs: Sequence[TokenSpec] = SPECS, width: int = 32) -> None:
    """Parameters are float32 with logical axes, outputs finite, gradients reach the parameters."""
    inert(head, Head)
    vocabulary = Vocabulary(tuple(specs))
    made = head.init(jax.random.key(0), width, vocabulary)
    for leaf, (array, axes) in made.items():
        require(array.dtype == jnp.float32, head, "init()", f"{leaf!r} is float32")
        require(len(axes) == array.ndim, head, "init()", f"{leaf!r} has a logical axis a dim")
    unknown = set(head.bounds()) - set(made)
    require(not unknown, head, "bounds()", f"{sorted(unknown)} are no leaves of init()")
    context = HeadContext(jnp.zeros((vocabulary.size, width)), vocabulary, specs[0].name)
    params = {leaf: array for leaf, (array, _) in made.items()}

    def run(params):
        out = jax.tree.leaves(head.apply(params, x, context))
        return sum((jnp.sum(jnp.sin(y.astype(jnp.float32))) for y in out), jnp.zeros(()))

    value, grads = jax.jit(jax.value_and_grad(run))(params)
    finite = [bool(jnp.isfinite(g).all()) for g in (value, *jax.tree.leaves(grads))]
    require(all(finite), head, "apply()", "outputs and gradients are finite")


def check_stem(stem: Stem, spec: TokenSpec = PICTURE, width: int = 32) -> None:
    """Parameters are float32 with logical axes; vectors have the width and dtype of the model; what
    a view does not show has no influence; gradients reach the parameters."""
    inert(stem, Stem)
    stem.check(spec)
    made = stem.init(jax.random.key(0), spec, width)
    require(stems.PIECE in made, stem, "init()", f"there is a leaf {stems.PIECE!r}")
    for leaf, (array, axes) in made.items():
        require(array.dtype == jnp.float32, stem, "init()", f"{leaf!r} is float32")
        require(len(axes) == array.ndim, stem, "init()", f"{leaf!r} has a logical axis a dim")
    made_of = data.samples([spec], rows=4, absent=0.25)
    batch, _ = layouts.Aligned().build(made_of, Streams((spec.name,), ()), Vocabulary((spec,)))
    view = jax.tree.map(jnp.asarray, batch.views[spec.name])
    params = {leaf: array for leaf, (array, _) in made.items()}

    values = view.values[spec.name]

    def run(params, dtype=jnp.float32, values=values):
        return stem.apply(params, values, view, spec, dtype)

    wanted = (*values.slot_BJ.shape, width)
    for dtype in (jnp.float32, jnp.bfloat16):
        out = jax.eval_shape(functools.partial(run, dtype=dtype), params)
        fits = (out.shape, out.dtype) == (wanted, dtype)
        require(fits, stem, "apply()", f"it gives {wanted} in the dtype that is asked for")
    used = (values.slot_BJ < view.ids_BL.shape[1])[:, :, None]
    other = values._replace(value_BJP=jnp.where(used, values.value_BJP, 7.0))
    quick = jax.jit(lambda params, values: run(params, values=values))
    same = jnp.where(used, quick(params, values) - quick(params, other), 0.0)
    require(bool(jnp.all(same == 0)), stem, "apply()", "unused pieces have no influence")
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.where(used, jnp.sin(run(p)), 0.0))))(params)
    finite = all(bool(jnp.isfinite(g).all()) and bool(jnp.any(g)) for g in jax.tree.leaves(grads))
    require(finite, stem, "apply()", "each parameter has a gradient that is finite and not zero")
    flops = stem.flops(spec, width, *values.slot_BJ.shape)
    require(flops > 0, stem, "flops()", "it is more than 0")


def check_objective(
    objective: Objective,
    specs: Sequence[TokenSpec] = SPECS,
    inputs: Sequence[str] = ("image", "text"),
    targets: Sequence[str] = (),
    layout: Layout | None = None,
    model: plan.Transformer | None = None,
) -> None:
    """Losses a sample, finite, also when much is absent; the same on one device and on all; no
    record of a model call lost; representations that it can compare.

    Args:
      specs: of the vocabulary. inputs, targets, layout: as of a task. model: None = a small one.
    """
    inert(objective, Objective)
    vocabulary, streams = Vocabulary(tuple(specs)), Streams(tuple(inputs), tuple(targets))
    heads = objective.heads(
        tuple(vocabulary.spec(n) for n in inputs), tuple(vocabulary.spec(n) for n in targets)
    )
    model = model or small_model(shape="encoder_decoder" if targets else "encoder")
    layout = layout or (layouts.Masked() if targets else layouts.Aligned())
    task = Task(
        source=Source(), inputs=streams.inputs, targets=streams.targets, layout=layout,
        objective=objective, batch_size=16, group_rows=4,
    )  # fmt: skip
    objective.check(task, {spec.name: spec for spec in specs}, model.lane_names())
    parts = step_lib.split(functools.partial(model.make, vocabulary, heads, 0))
    params, state = _arrays(parts)
    used = [vocabulary.spec(n) for n in dict.fromkeys((*inputs, *targets))]
    extra = {name: e.init(params) for name, e in objective.extra().items()}
    told = lambda condition, rule: require(condition, objective, "losses()", rule)

    def run(params, batch):
        batch = step_lib.normalise_weights(batch, objective.target_balance)
        bound = step_lib.bind(parts, params, state, 4, "float32", True)
        losses, metrics, record, features = objective(bound, batch, jax.random.key(0), extra)
        summed = sum(total(losses).values(), jnp.zeros(()))
        return summed, (losses, metrics, record, features)

    step = jax.jit(jax.value_and_grad(run, has_aux=True))
    found = {}
    for absent in (0.0, 0.5, 2.0):
        made = data.samples(used, 16, absent=absent)
        batch = layout.build_groups(made, streams, vocabulary, 4)[0]
        (value, aux), grads = step(params, batch)
        finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((value, grads, aux[1])))
        told(finite, f"losses, metrics and gradients are finite ({absent:g} absent)")
        found[absent] = value, aux, batch
    value, (losses, metrics, _, features), batch = found[0.0]
    shape = batch.weight_BS.shape
    for name, loss in losses.items():
        wrong = (loss.value_BS.shape, loss.weight_BS.shape) != (shape, shape)
        told(not wrong, f"loss {name!r} has a value and a weight a sample, [B, S]")
    told(all(jnp.ndim(m) == 0 for m in metrics.values()), "metrics are scalars")
    for name, feature in features.items():
        leads = jnp.shape(feature)[:1] == shape[:1]
        require(leads, objective, "embed()", f"feature {name!r} has the rows of the batch in front")
    _check_extra(objective, extra, params, features, batch)
    _check_sharded(objective, step, params, batch, float(value))
    _check_compared(objective, task, parts, params, state, batch)


def _check_extra(objective, extra, params, features, batch) -> None:
    for name, e in objective.extra().items():
        new = e.update(extra[name], params, features, batch)
        shapes = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
        same = shapes(new) == shapes(extra[name])
        require(same, objective, "extra()", f"{name!r} keeps tree, shapes and dtypes")


def _check_sharded(objective, step, params, batch: Batch, value: float) -> None:
    count = 4 if len(jax.devices()) >= 4 else 1
    mesh = MeshConfig().make(jax.devices()[:count])
    placed = jax.device_put(batch, rules.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        (other, _), _ = step(params, placed)
    close = math.isclose(value, float(other), rel_tol=1e-3, abs_tol=1e-5)
    require(close, objective, "losses()", f"{value} on one device is {float(other)} on {count}")


def _check_compared(objective, task: Task, parts, params, state, batch: Batch) -> None:
    views = objective.views(task)
    found = {}
    for view in views:
        bound = step_lib.bind(parts, params, state, 4, "float32")
        z_BSX, _ = objective.represent(bound, batch.views[view], view, 1)
        found[view] = np.asarray(z_BSX)[:, 0]
        finite = np.isfinite(found[view]).all()
        require(finite, objective, "represent()", f"view {view!r} has finite representations")
    for a, b in itertools.pairwise(views):
        scores = np.asarray(objective.similarity(found[a], found[b][:5]))
        rows = (len(found[a]), 5)
        require(
            scores.shape == rows, objective, "similarity()", f"it gives {rows}, not {scores.shape}"
        )
        require(np.isfinite(scores).all(), objective, "similarity()", "similarities are finite")


def check_rule(rule: GradientRule) -> None:
    """It returns a gradient and a state like those that it is given, finite, also for one loss and
    for gradients of zero."""
    inert(rule, GradientRule)
    rng = np.random.default_rng(0)
    like = {"a": jnp.zeros((3, 2)), "b": {"c": jnp.zeros((4,))}}
    if rule.over:
        like = {f"enc/{name}/0": jnp.zeros((4, 3, 2)) for name in rule.over}
    tasks = ("first", "second")
    for num, scale in ((1, 1.0), (3, 1.0), (2, 0.0)):
        draw = lambda x: scale * jnp.asarray(rng.normal(size=x.shape), jnp.float32)  # noqa: B023
        table = {f"loss{i}": jax.tree.map(draw, like) for i in range(num)}

        def pullback(weights, table=table):
            return jax.tree.map(
                lambda *g: sum(w * x for w, x in zip(weights.values(), g, strict=True)),
                *table.values(),
            )

        state = rule.init_state(like, tasks)
        losses = dict.fromkeys(table, jnp.ones(()))
        for step in range(3):
            task = tasks[step % 2]
            run = jax.jit(lambda s, k, t=task, p=pullback, x=losses: rule.combine(x, p, s, t, k))
            grads, new = run(state, jax.random.key(step))
            check_returned(rule, pullback(losses), grads, state, new)
            finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((grads, new)))
            require(finite, rule, "combine()", "gradients and state are finite")
            state = new


def check_evaluator(evaluator: Evaluator, view: View) -> None:
    """Metrics are finite numbers by name, and a second run gives the same."""
    inert(evaluator, Evaluator)
    evaluator.check(view)  # what can run may not be refused before
    first, second = evaluator.run(view), evaluator.run(view)
    told = lambda condition, rule: require(condition, evaluator, "run()", rule)
    told(isinstance(first, dict) and first, "it returns metrics by name")
    for name, value in first.items():
        told(isinstance(name, str), f"{name!r} is no name")
        told(isinstance(value, (int, float)), f"metric {name!r} is a number, not {value!r}")
    told(first.keys() == second.keys(), "a second run gives the same metrics")
    for name, value in first.items():
        same = math.isclose(value, second[name], rel_tol=1e-5, abs_tol=1e-7)
        told(same or value != value, f"metric {name!r} is {value}, then {second[name]}")


def _arrays(parts: step_lib.Parts):
    """Fresh parameters and model state."""

    @jax.jit
    def make():
        _, params, state = nnx.split(parts.make(), nnx.Param, ModelState)
        return nnx.as_pure(params), nnx.as_pure(state)

    return make()


def _view(vocabulary: Vocabulary, spec: TokenSpec, rows: int) -> Tokens:
    """A view [rows, 8] of one stream, all of its tokens present."""
    made = data.samples([dataclasses.replace(spec, kind="grid")], rows, absent=0.0)
    streams = Streams((spec.name,), ())
    batch, _ = layouts.Aligned().build(made, streams, vocabulary)
    view = batch.views[spec.name]
    order = np.tile(np.arange(view.ids_BL.shape[1], dtype=np.int32), (rows, 1))
    return jax.tree.map(jnp.asarray, view._replace(order_BL=order))
