"""A diagonal state-space mixer (S4D, Gu et al. 2022): h_t = a h_{t-1} + x_t, y_t = c h_t."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.block import BlockConfig
from mmjax.models.module import BlockModule, Cache, param


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateSpace(BlockConfig):
    """Mixes the tokens of a row from left to right; padding leaves the state alone."""

    def make(self, stack, rngs):
        return StateSpaceModule(stack.width, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        return 4.0 * stack.width**2 + 6.0 * stack.width

    @property
    def is_causal(self):
        return True


class StateSpaceModule(BlockModule):
    def __init__(self, width, rngs):
        self.into = param(rngs, (width, width), ("embed", "mlp"), width, (0,))
        self.out = param(rngs, (width, width), ("mlp", "embed"), width, (0,), 0.3)
        self.decay = nnx.Param(jnp.linspace(0.0, 3.0, width), axes=("unsharded",), reduce=())

    def _scan(self, x_BLD, tokens, h_BD):
        into, out = (w[...].astype(x_BLD.dtype) for w in (self.into, self.out))
        real_BL1 = (tokens.segment_BL > 0)[..., None]
        a_D = jax.nn.sigmoid(self.decay[...]).astype(x_BLD.dtype)

        def step(h, new):
            u, real = new
            h = jnp.where(real, a_D[None] * h + u, h)
            return h, h

        u_BLD = jnp.matmul(x_BLD, into)
        h_BD, h_LBD = jax.lax.scan(
            step, h_BD, (jnp.swapaxes(u_BLD, 0, 1), jnp.swapaxes(real_BL1, 0, 1))
        )
        return x_BLD + jnp.matmul(jnp.swapaxes(h_LBD, 0, 1), out), h_BD

    def __call__(self, x_BLD, call):
        zero = jnp.zeros_like(x_BLD[:, 0])
        return self._scan(x_BLD, call.tokens, zero)[0], {}

    def init_cache(self, rows, length, dtype, memory):
        return Cache(state=jnp.zeros((rows, self.into.shape[-2]), dtype))

    def decode_step(self, x_BQD, call, cache):
        x, h_BD = self._scan(x_BQD, call.tokens, cache.state)
        return x, Cache(state=h_BD)
