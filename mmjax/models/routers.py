"""Routers: which experts see which tokens, with state carried across steps.

Under alternation one batch holds few modalities, so balancing inside the batch would undo
specialisation; the default balances across steps by a selection bias instead.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

from etils import epy

from mmjax.config import ranges
from mmjax.typing import Array

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Routing(NamedTuple):
    """One of three forms is set; a weight of 0 = not used.

    token choice: expert_WTX (int32), weight_WTX. expert choice: token_WEC (int32), weight_WEC.
    soft: dispatch_WTEC, combine_WTEC.
    """

    expert_WTX: Array = None
    weight_WTX: Array = None
    token_WEC: Array = None
    weight_WEC: Array = None
    dispatch_WTEC: Array = None
    combine_WTEC: Array = None
    aux_loss: Array | float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Router:
    """Base of all routers. `state` is a dict of float32 arrays a layer, without gradient."""

    def init_state(self, num_experts: int, num_streams: int) -> dict[str, Array]:
        """State of a layer before the first step; here a selection bias of each expert."""
        del num_streams
        return {"bias": jnp.zeros((num_experts,))}

    @property
    def uses_logits(self) -> bool:
        """Whether it looks at logits; without, a layer has no parameters that make them."""
        return True

    def init_params(
        self, key: Array, width: int, num_experts: int
    ) -> dict[str, tuple[Array, tuple[str, ...]]]:
        """Parameters of its logits, each with its logical axes: here a matrix [D, E], `router`."""
        matrix_DE = jax.random.normal(key, (width, num_experts)) * width**-0.5
        return {"router": (matrix_DE, ("embed", "unsharded"))}

    def logits(self, x_WTD: Array, params: dict[str, Array]) -> Array:
        """What `route` gets as logits, from float32 features and parameters."""
        return jnp.matmul(x_WTD, params["router"])

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers while it trains."""
        return False

    @property
    def needs_whole_group(self) -> bool:
        """Whether the choice for one token looks at the others of its group."""
        return False

    def route(
        self,
        x_WTD: Array,
        logits_WTE: Array,
        state: dict[str, Array],
        stream_WT: Array,
        valid_WT: Array,
        key: Array | None,
    ) -> Routing:
        """Routing of W groups of T tokens from float32 logits; `key` is None unless it `draws`."""
        raise NotImplementedError(f"{type(self).__name__} must define route().")

    def update(self, state: dict[str, Array], statistics: dict[str, Array]) -> dict[str, Array]:
        """State after one optimizer step; `load` of the statistics [M + 1, E] are tokens by stream
        (row 0 = padding) and expert."""
        del statistics
        return state


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenChoice(Router):
    """Each token takes its top-k experts; a bias carried across steps balances the load.

    Scores are sigmoids; the bias affects the selection only, and the weights are the selected
    scores divided by their sum. After each step the bias of an expert moves by `bias_rate` towards
    the mean load (auxiliary-loss-free balancing, Wang et al. 2024, arXiv 2408.15664).

    Fields:
      num_experts_per_tok, bias_rate.
      load_balance_loss_weight, z_loss_weight: of `switch_loss` and `z_loss`; 0 = none.

    >>> import jax.numpy as jnp
    >>> router = TokenChoice(num_experts_per_tok=1)
    >>> state = router.init_state(num_experts=3, num_streams=1)
    >>> logits_WTE = jnp.array([[[2.0, 0.0, -2.0], [0.0, 1.0, 1.0]]])  # two tokens, three experts
    >>> stream_WT = jnp.ones((1, 2), int)
    >>> routing = router.route(None, logits_WTE, state, stream_WT, stream_WT > 0, key=None)
    >>> routing.expert_WTX.tolist(), routing.weight_WTX.tolist()
    ([[[0], [1]]], [[[1.0], [1.0]]])
    >>> router.update(state, {"load": jnp.array([[0.0, 0, 0], [8, 1, 0]])})
    {'bias': Array([-0.001,  0.001,  0.001], dtype=float32)}
    """

    num_experts_per_tok: ranges.Count = 2
    bias_rate: ranges.NonNegative = 0.001
    load_balance_loss_weight: ranges.NonNegative = 0.0
    z_loss_weight: ranges.NonNegative = dataclasses.field(default=0.0, metadata={"is_new": True})

    def __post_init__(self):
        ranges.check(self)

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        del x_WTD, stream_WT, key
        scores_WTE = jax.nn.sigmoid(logits_WTE)
        select_WTE = jax.lax.stop_gradient(scores_WTE) + state["bias"][None, None, :]
        _, expert_WTX = jax.lax.top_k(select_WTE, self.num_experts_per_tok)
        weight_WTX = jnp.take_along_axis(scores_WTE, expert_WTX, axis=-1)
        weight_WTX = weight_WTX / (jnp.sum(weight_WTX, axis=-1, keepdims=True) + 1e-9)
        weight_WTX = jnp.where(valid_WT[:, :, None], weight_WTX, 0.0)
        aux = _aux_loss(self, logits_WTE, scores_WTE, expert_WTX, valid_WT)
        return Routing(expert_WTX=expert_WTX, weight_WTX=weight_WTX, aux_loss=aux)

    def update(self, state, statistics):
        load_E = jnp.sum(statistics["load"][1:], axis=0)
        move_E = self.bias_rate * jnp.sign(jnp.mean(load_E, keepdims=True) - load_E)
        return {"bias": state["bias"] + move_E}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxTopK(Router):
    """Each token takes its top-k experts by softmax; losses balance the load within a batch.

    `norm_topk_prob=True`: the weights are the softmax over the logits of the chosen experts, which
    is that over all experts divided by the sum of the chosen (Mixtral, Jiang et al. 2024, arXiv
    2401.04088). False: they are the softmax over all experts as it is, and sum to less than 1
    (OLMoE, Muennighoff et al. 2024, arXiv 2409.02060; with one expert a token, Switch).

    A batch of one modality is balanced within that modality: `TokenChoice`, which balances across
    steps, keeps the experts of modalities apart.

    Fields:
      num_experts_per_tok, norm_topk_prob.
      load_balance_loss_weight, z_loss_weight: of `switch_loss` and `z_loss`, means over the tokens
        of a batch (other programs scale theirs by the number of experts chosen); 0 = none.

    >>> import jax.numpy as jnp
    >>> logits_WTE = jnp.log(jnp.array([[[6.0, 3, 1], [2, 2, 4]]]))  # two tokens, three experts
    >>> stream_WT = jnp.ones((1, 2), int)
    >>> for normed in (True, False):
    ...     router = SoftmaxTopK(num_experts_per_tok=2, norm_topk_prob=normed)
    ...     routing = router.route(None, logits_WTE, {}, stream_WT, stream_WT > 0, key=None)
    ...     weight_X = routing.weight_WTX[0, 0]
    ...     routing.expert_WTX[0, 0].tolist(), [round(float(w), 3) for w in weight_X]
    ([0, 1], [0.667, 0.333])
    ([0, 1], [0.6, 0.3])
    """

    num_experts_per_tok: ranges.Count = 2
    norm_topk_prob: bool = True
    load_balance_loss_weight: ranges.NonNegative = 0.01
    z_loss_weight: ranges.NonNegative = 0.001

    def __post_init__(self):
        ranges.check(self)

    def init_state(self, num_experts, num_streams):
        return {}

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        del x_WTD, state, stream_WT, key
        prob_WTE = jax.nn.softmax(logits_WTE, axis=-1)
        chosen_WTX, expert_WTX = jax.lax.top_k(logits_WTE, self.num_experts_per_tok)
        if self.norm_topk_prob:
            weight_WTX = jax.nn.softmax(chosen_WTX, axis=-1)
        else:
            weight_WTX = jnp.take_along_axis(prob_WTE, expert_WTX, axis=-1)
        weight_WTX = jnp.where(valid_WT[:, :, None], weight_WTX, 0.0)
        aux = _aux_loss(self, logits_WTE, prob_WTE, expert_WTX, valid_WT)
        return Routing(expert_WTX=expert_WTX, weight_WTX=weight_WTX, aux_loss=aux)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertChoice(Router):
    """Each expert takes its top-C tokens of the group (Zhou et al. 2022; IMP).

    C = round(capacity_factor * T / E). Not allowed in causal lanes. If a batch holds one modality,
    the choice balances within it, which prevents specialisation; `allow_unmixed=True` accepts that
    (as IMP does).

    >>> import jax.numpy as jnp
    >>> router = ExpertChoice()
    >>> state = router.init_state(num_experts=3, num_streams=1)
    >>> logits_WTE = jnp.array([[[2.0, 0.0, -2.0], [0.0, 1.0, 1.0]]])  # two tokens, three experts
    >>> stream_WT = jnp.ones((1, 2), int)
    >>> routing = router.route(None, logits_WTE, state, stream_WT, stream_WT > 0, key=None)
    >>> routing.token_WEC.tolist(), round(float(routing.weight_WEC[0, 0, 0]), 3)
    ([[[0], [1], [1]]], 0.867)
    """

    capacity_factor: ranges.Positive = 1.0
    allow_unmixed: bool = False

    def __post_init__(self):
        ranges.check(self)

    @property
    def needs_whole_group(self) -> bool:
        return True

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        del x_WTD, state, stream_WT, key
        num_tokens, num_experts = logits_WTE.shape[1:]
        capacity = max(1, min(num_tokens, round(self.capacity_factor * num_tokens / num_experts)))
        prob_WTE = jax.nn.softmax(logits_WTE, axis=-1)
        prob_WTE = jnp.where(valid_WT[:, :, None], prob_WTE, 0.0)
        weight_WEC, token_WEC = jax.lax.top_k(jnp.swapaxes(prob_WTE, 1, 2), capacity)
        return Routing(token_WEC=token_WEC, weight_WEC=weight_WEC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soft(Router):
    """Soft mixture: every slot is a weighted mean of tokens (Puigcerver et al. 2023).

    One slot per expert; dispatch = softmax over tokens, combine = softmax over slots.

    >>> import jax.numpy as jnp
    >>> router = Soft()
    >>> state = router.init_state(num_experts=3, num_streams=1)
    >>> logits_WTE = jnp.array([[[2.0, 0.0, -2.0], [0.0, 1.0, 1.0]]])  # two tokens, three experts
    >>> stream_WT = jnp.ones((1, 2), int)
    >>> routing = router.route(None, logits_WTE, state, stream_WT, stream_WT > 0, key=None)
    >>> routing.dispatch_WTEC.shape, round(float(routing.combine_WTEC[0, 0, 0, 0]), 3)
    ((1, 2, 3, 1), 0.867)
    """

    @property
    def needs_whole_group(self) -> bool:
        return True

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        del x_WTD, state, stream_WT, key
        valid = valid_WT[:, :, None]
        dispatch_WTE = jax.nn.softmax(jnp.where(valid, logits_WTE, -1e30), axis=1)
        combine_WTE = jax.nn.softmax(logits_WTE, axis=2)
        return Routing(
            dispatch_WTEC=jnp.where(valid, dispatch_WTE, 0.0)[..., None],
            combine_WTEC=jnp.where(valid, combine_WTE, 0.0)[..., None],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByStream(Router):
    """Each stream has its own expert: modality feed-forwards (VLMo, Bao et al. 2022; BEiT-3).

    Fields:
      experts: the expert of each stream, in the order of the vocabulary; streams may share one.

    >>> import jax.numpy as jnp
    >>> router = ByStream(experts=(1, 0))
    >>> stream_WT = jnp.array([[1, 2, 0]])  # 0 is padding
    >>> routing = router.route(None, None, {}, stream_WT, stream_WT > 0, None)
    >>> routing.expert_WTX[0, :, 0].tolist(), routing.weight_WTX[0, :, 0].tolist()
    ([1, 0, 0], [1.0, 1.0, 0.0])
    """

    experts: tuple[ranges.Natural, ...]
    num_experts_per_tok: Annotated[int, ranges.Range(1, 1)] = 1

    def __post_init__(self):
        ranges.check(self)

    @property
    def uses_logits(self) -> bool:
        return False

    def init_state(self, num_experts, num_streams):
        if len(self.experts) != num_streams or max(self.experts) >= num_experts:
            raise ValueError(
                f"ByStream: experts={self.experts} must name one of num_experts={num_experts}"
                f" experts for each of the {num_streams} streams."
            )
        return {}

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        del x_WTD, logits_WTE, state, key
        table = jnp.asarray((0, *self.experts), jnp.int32)  # stream 0 is padding
        weight_WT = valid_WT.astype(jnp.float32)
        return Routing(expert_WTX=table[stream_WT][..., None], weight_WTX=weight_WT[..., None])


def switch_loss(scores_WTE: Array, expert_WTX: Array, valid_WT: Array) -> Array:
    """Switch load loss E * sum_e f_e p_e (Fedus et al. 2021), 1 when even."""
    num_experts = scores_WTE.shape[-1]
    valid = valid_WT.astype(scores_WTE.dtype)
    count = jnp.maximum(jnp.sum(valid), 1.0)
    chosen_WTE = jnp.sum(jax.nn.one_hot(expert_WTX, num_experts, dtype=scores_WTE.dtype), axis=2)
    share_E = jnp.einsum("WTE,WT->E", chosen_WTE, valid) / (count * expert_WTX.shape[-1])
    prob_WTE = scores_WTE / jnp.sum(scores_WTE, axis=-1, keepdims=True)
    prob_E = jnp.einsum("WTE,WT->E", prob_WTE, valid) / count
    return num_experts * jnp.sum(share_E * prob_E)


def z_loss(logits_WTE: Array, valid_WT: Array) -> Array:
    """Router z-loss, mean of logsumexp(logits)^2 over tokens (ST-MoE, Zoph et al. 2022)."""
    squared_WT = jnp.square(jax.nn.logsumexp(logits_WTE, axis=-1))
    count = jnp.maximum(jnp.sum(valid_WT.astype(jnp.float32)), 1.0)
    return jnp.sum(jnp.where(valid_WT, squared_WT, 0.0)) / count


def _aux_loss(
    router: TokenChoice | SoftmaxTopK, logits_WTE, scores_WTE, expert_WTX, valid_WT
) -> Array | float:
    """What the weights of a router ask for; the float 0 when they ask for nothing."""
    loss = 0.0
    if router.load_balance_loss_weight:
        loss += router.load_balance_loss_weight * switch_loss(scores_WTE, expert_WTX, valid_WT)
    if router.z_loss_weight:
        loss += router.z_loss_weight * z_loss(logits_WTE, valid_WT)
    return loss
