"""A feed-forward for each family of streams (ONE-PEACE), and shared beside routed experts."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from mmjax.models import MoE, TokenChoice
from mmjax.models.block import BlockConfig
from mmjax.models.blocks import Experts, Mlp, Norm
from mmjax.models.module import BlockModule, Cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByFamily(BlockConfig):
    """x + ffn_f(norm(x)), f the family of the token's stream."""

    families: tuple[int, ...] = (0, 1, 1)

    def make(self, stack, rngs):
        return ByFamilyModule(self.families, stack, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        return 6.0 * stack.width * stack.ffn_width

    @property
    def is_causal(self):
        return True


class ByFamilyModule(BlockModule):
    def __init__(self, families, stack, rngs):
        self.families = families
        self.norm = Norm(stack.width, stack.norm, stack.norm_eps)
        made = [
            Mlp(stack.width, stack.ffn_width, rngs, stack.gain) for _ in range(max(families) + 1)
        ]
        self.ffns = nnx.List(made)

    def _added(self, x, tokens, rows):
        y = self.norm(x)
        family = jnp.asarray((-1, *self.families))[tokens.stream_BL]
        for number, ffn in enumerate(self.ffns):
            out, _ = ffn(y, tokens, rows, None)
            x = x + jnp.where((family == number)[..., None], out, 0)
        return x

    def __call__(self, x_BLD, call):
        return self._added(x_BLD, call.tokens, call.group_rows), {}

    def init_cache(self, rows, length, dtype, memory):
        return Cache()

    def decode_step(self, x_BQD, call, cache):
        return self._added(x_BQD, call.tokens, call.group_rows), Cache()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedExperts(BlockConfig):
    """x + shared(norm(x)) + routed(norm(x)) (DeepSeekMoE)."""

    moe: MoE = MoE(num_experts=4, width=16, router=TokenChoice(bias_rate=0.01), block_rows=8)

    def make(self, stack, rngs):
        return SharedExpertsModule(self.moe, stack, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        return 6.0 * stack.width * (16 + 2 * 16)

    @property
    def is_causal(self):
        return True

    def update_state(self, state, record):
        return {**state, "routed": self.moe.router.update(state["routed"], record)}


class SharedExpertsModule(BlockModule):
    def __init__(self, moe, stack, rngs):
        self.norm = Norm(stack.width, stack.norm, stack.norm_eps)
        self.shared = Mlp(stack.width, 16, rngs, stack.gain)
        self.routed = Experts(moe, stack, 16, rngs)

    def _added(self, x, tokens, rows, key=None):
        y = self.norm(x)
        out, record = self.routed(y, tokens, rows, key)
        return x + out + self.shared(y, tokens, rows, None)[0], record

    def __call__(self, x_BLD, call):
        return self._added(x_BLD, call.tokens, call.group_rows, call.key)

    def init_cache(self, rows, length, dtype, memory):
        return Cache()

    def decode_step(self, x_BQD, call, cache):
        return self._added(x_BQD, call.tokens, call.group_rows)[0], Cache()
