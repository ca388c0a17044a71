"""Routers and experts against those of transformers, with its weights copied."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from mmjax.models import MoE, SoftmaxTopK, blocks
from mmjax.models.routers import switch_loss

pytestmark = pytest.mark.hf

WIDTH, INNER, EXPERTS, CHOSEN = 32, 24, 8, 3


def mixtral():
    """(its experts, our router)."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
    )  # fmt: skip
    return MixtralSparseMoeBlock(config), SoftmaxTopK(num_experts_per_tok=CHOSEN)


def olmoe(norm_topk_prob: bool = False):
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN, norm_topk_prob=norm_topk_prob,
    )  # fmt: skip
    router = SoftmaxTopK(num_experts_per_tok=CHOSEN, norm_topk_prob=norm_topk_prob)
    return OlmoeSparseMoeBlock(config), router


def olmoe_normed():
    return olmoe(norm_topk_prob=True)


@pytest.mark.parametrize("published", [mixtral, olmoe, olmoe_normed])
def test_outputs_and_weights_are_those_of_the_published_layer(published):
    import torch

    theirs, router = published()
    rng = np.random.default_rng(0)
    for p in theirs.parameters():
        p.data = torch.tensor(rng.normal(size=p.shape).astype(np.float32)) * p.shape[-1] ** -0.5
    stack = small.config("encoder", width=WIDTH).stack(num_streams=3)
    config = MoE(num_experts=EXPERTS, router=router, block_rows=8)
    ours = blocks.Experts(config, stack, INNER, nnx.Rngs(params=0))
    weights = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    gate_EFD, up_EFD = np.split(weights["experts.gate_up_proj"], 2, axis=1)
    ours.router[...] = jnp.asarray(weights["gate.weight"].T)
    ours.gate[...] = jnp.asarray(gate_EFD.swapaxes(1, 2))
    ours.up[...] = jnp.asarray(up_EFD.swapaxes(1, 2))
    ours.down[...] = jnp.asarray(weights["experts.down_proj"].swapaxes(1, 2))

    tokens = small.view(rng, "text")
    x_BLD = rng.normal(size=(*tokens.stream_BL.shape, WIDTH)).astype(np.float32)
    got, record = jax.jit(lambda x: ours(x, tokens, small.GROUP, None))(x_BLD)
    with torch.no_grad():
        want = theirs(torch.tensor(x_BLD)).numpy()
        logits, weight, expert = theirs.gate(torch.tensor(x_BLD))
    real = tokens.stream_BL > 0
    np.testing.assert_allclose(got[real], want[real], atol=2e-6)
    assert (np.asarray(got)[~real] == 0).all()

    logits_WTE = logits.numpy()[None]
    ones_WT = np.ones(logits_WTE.shape[:2], np.int32)
    routing = router.route(None, jnp.asarray(logits_WTE), {}, ones_WT, ones_WT > 0, None)
    np.testing.assert_array_equal(routing.expert_WTX[0], expert)
    np.testing.assert_allclose(routing.weight_WTX[0], weight, atol=1e-6)
    assert float(record["aux_loss"]) > 0


def test_the_load_loss_is_theirs_by_the_number_of_chosen_experts():
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    rng = np.random.default_rng(1)
    logits = rng.normal(size=(40, EXPERTS)).astype(np.float32)
    mask = (rng.random((4, 10)) > 0.3).astype(np.int32)
    theirs = load_balancing_loss_func(
        (torch.tensor(logits),), EXPERTS, CHOSEN, torch.tensor(mask)
    )  # fmt: skip
    prob_WTE = jax.nn.softmax(jnp.asarray(logits.reshape(4, 10, EXPERTS)))
    _, expert_WTX = jax.lax.top_k(prob_WTE, CHOSEN)
    ours = switch_loss(prob_WTE, expert_WTX, jnp.asarray(mask > 0))
    np.testing.assert_allclose(ours * CHOSEN, theirs.item(), rtol=1e-5)
