"""Convolutions as shifted matrix products, and the autoencoder made of them or of attention.

On a CPU the gradients of XLA's own convolutions are many times slower than a product of the
neighbours laid side by side, and at the small grids of codes that costs no memory to speak of.

Letters here: I rows, J columns, C channels of the array; Y code rows, Z code columns; Q codebooks.
Arrays of videos have time before the rows, and so have their codes: the letters leave it out.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import autoencoder, blocks, module, plan, waveform_codec
from mmjax.models.block import Stack
from mmjax.parallel import rules
from mmjax.typing import NUM_AXES, Array, OneSegment, Tokens, TokenSpec, Vocabulary


class Convolution(nnx.Module):
    """Zero-padded convolution of stride 1; no taps along an axis of length 1."""

    def __init__(self, grid, kernel: int, width: int, out: int, rngs: nnx.Rngs):
        self.reach = tuple(kernel // 2 if size > 1 else 0 for size in grid)
        taps = math.prod(2 * reach + 1 for reach in self.reach)
        axes = ("unsharded", "embed", "mlp")
        self.kernel = blocks.param(rngs, (taps, width, out), axes, taps * width, (0, 1))
        self.bias = nnx.Param(jnp.zeros((out,)), axes=("mlp",), reduce=())

    def __call__(self, x_BYZD: Array) -> Array:
        sizes = x_BYZD.shape[1:-1]
        padded = jnp.pad(x_BYZD, ((0, 0), *[(reach, reach) for reach in self.reach], (0, 0)))
        shifted = [
            padded[:, *(slice(at, at + size) for at, size in zip(start, sizes, strict=True))]
            for start in itertools.product(*[range(2 * reach + 1) for reach in self.reach])
        ]
        kernel = self.kernel[...].astype(x_BYZD.dtype)
        y = jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
        return _with_bias(y, self.bias)


class Affine(nnx.Module):
    """A matrix and a bias: of each cell, so a convolution whose stride is its kernel."""

    def __init__(self, width: int, out: int, axes: tuple[str, str], rngs: nnx.Rngs, reduce=()):
        self.kernel = blocks.param(rngs, (width, out), axes, width, reduce)
        self.bias = nnx.Param(jnp.zeros((out,)), axes=axes[1:], reduce=())

    def __call__(self, x: Array) -> Array:
        y = x @ self.kernel[...].astype(x.dtype)
        return _with_bias(y, self.bias)


def _with_bias(y: Array, bias: nnx.Param) -> Array:
    return y + bias[...].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class Residual(nnx.Module):
    """Norm, convolution, GELU, matrix, added to the input."""

    def __init__(self, config: autoencoder.Autoencoder, rngs: nnx.Rngs):
        width, inner = config.width, config.width * config.expansion
        self.norm = blocks.Norm(width, "rms", 1e-6)
        self.convolution = Convolution(config.code_grid, config.kernel, width, inner, rngs)
        self.out = Affine(inner, width, ("mlp", "embed"), rngs, (0,))

    def __call__(self, x_BYZD: Array) -> Array:
        y = jax.nn.gelu(self.convolution(self.norm(x_BYZD)))
        return rules.constrain_batch(x_BYZD + self.out(y))


class Attending(nnx.Module):
    """The block of the transformer, over all codes of a value."""

    def __init__(self, config: autoencoder.Autoencoder, depth: int, rngs: nnx.Rngs):
        width = config.width
        stack = Stack(
            width=width, num_heads=config.num_heads, kv_heads=config.num_heads,
            head_width=width // config.num_heads, ffn_width=width * config.expansion, norm="rms",
            norm_eps=1e-6, qk_norm=True, rotary=False, max_wavelength=1.0, attention="auto",
            query_block=256, depth=depth, num_streams=1,
        )  # fmt: skip
        self.block = plan.Block().make(stack, rngs)

    def __call__(self, x_BYZD: Array) -> Array:
        rows, width = x_BYZD.shape[0], x_BYZD.shape[-1]
        cells = math.prod(x_BYZD.shape[1:-1])
        ones = jnp.ones((rows, cells), jnp.int32)
        place = jnp.zeros((rows, cells, NUM_AXES))  # `place` of the side says where they are
        tokens = Tokens(0 * ones, ones, ones, 0 * ones, place, rule=OneSegment())
        call = module.Call(tokens=tokens, group_rows=rows)
        return self.block(x_BYZD.reshape(rows, cells, width), call)[0].reshape(x_BYZD.shape)


class Side(nnx.Module):
    """Into the width, layers, norm, out of the width."""

    def __init__(self, config, width: int, out: int, layers: int, rngs: nnx.Rngs):
        self.into = Affine(width, config.width, ("unsharded", "embed"), rngs)
        self.place = nnx.Param(
            jax.random.normal(rngs.params(), (*config.code_grid, config.width)) * 0.02,
            axes=("unsharded",) * len(config.code_grid) + ("embed",), reduce=(),
        )  # fmt: skip
        depth = max(layers, 1)
        one = lambda: Attending(config, depth, rngs) if config.num_heads else Residual(config, rngs)
        self.blocks = nnx.List([one() for _ in range(layers)])
        self.norm = blocks.Norm(config.width, "rms", 1e-6)
        self.out = Affine(config.width, out, ("embed", "unsharded"), rngs)

    def __call__(self, x: Array) -> Array:
        x_BYZD = self.into(x) + self.place[...].astype(x.dtype)[None]
        for block in self.blocks:
            x_BYZD = block(x_BYZD)
        return self.out(self.norm(x_BYZD))


class Codebook(nnx.Module):
    """State of the quantiser, by leaf name."""

    def __init__(self, state: dict[str, Array]):
        self.leaves = tuple(state)
        for name, value in state.items():
            setattr(self, name, blocks.ModelState(value, axes=("unsharded",) * value.ndim))

    def arrays(self) -> dict[str, Array]:
        """Leaf name -> array."""
        return {name: getattr(self, name)[...] for name in self.leaves}


class AutoencoderModule(nnx.Module):
    """The model calls `encode` (pieces to codes) and `decode` (codes to pieces).

    `codes` and `pieces` are the same for arrays without a batch around them.
    """

    critic: Any  # the optional parts, where the config has them
    flow: Any

    def __init__(self, config: autoencoder.Autoencoder, spec: TokenSpec, seed: int):
        rngs = nnx.Rngs(params=seed)
        self.config, self.spec = config, spec
        self.first_id = Vocabulary((spec,)).range(spec.name)[0]
        self.group_rows, self.compute_dtype = 0, "float32"
        self.array_shape = config.array_shape(spec)
        cell = math.prod(self.array_shape) // config.num_cells
        latent, inner = config.quantizer.width, config.width if config.strides else cell
        self.encoder = Side(config, inner, latent, config.encoder_layers, rngs)
        self.decoder = Side(config, latent, inner, config.decoder_layers, rngs)
        if config.strides:
            self.encoder = waveform_codec.Encoder(config, cell, self.encoder, rngs)
            self.decoder = waveform_codec.Decoder(config, cell, self.decoder, rngs)
        self.codebook = Codebook(config.quantizer.init(rngs.params()))
        for name, part in config.parts().items():  # last: the rest is drawn as without them
            setattr(self, name, part.make(config, self.array_shape, rngs))

    def encode(self, tokens: Tokens, lane: str = "", key=None) -> blocks.Encoded:
        """Vectors of the codes [B, Y Z, D], their ids and loss, statistics of the codebook.

        Rows without the stream count for nothing in the statistics.
        """
        del lane
        quantizer, state = self.config.quantizer, self.codebook.arrays()
        ids_BJ = tokens.ids_BL[:, : self.spec.max_tokens] - self.first_id  # of a grid of ids
        given = ids_BJ if self.spec.vocab_size else tokens.values[self.spec.name].value_BJP
        latent_ND = self._latents(given)
        num, is_there_B = self.config.num_cells, tokens.stream_BL[:, 0] > 0
        weight_N = jnp.repeat(is_there_B.astype(jnp.float32), num)
        quantized = quantizer.quantize(latent_ND, state, weight_N, key)
        statistics = quantizer.statistics(
            jax.lax.stop_gradient(latent_ND), quantized.ids_NQ, weight_N, state,
            jax.random.key(0) if key is None else key,
        )  # fmt: skip
        rows = lambda x: x.reshape(-1, num, *x.shape[1:])
        captured = {
            "ids": rows(quantized.ids_NQ),
            "commitment": rows(quantized.loss_N),
            "use": state["use"],
            "given": given,
        }
        record = {f"codebook/{name}": value for name, value in statistics.items()}
        return blocks.Encoded(rows(quantized.vector_ND), tokens, record, captured)

    def decode(self, tokens: Tokens, memory: blocks.Encoded, lane: str = "", key=None):
        """Pieces [B, J, P] float32 from the vectors of the codes; of ids, their logits."""
        del lane, key
        return memory._replace(x_BLD=self._pieces(memory.x_BLD), tokens=tokens, record={})

    def judge(self, value_BJP: Array, is_fixed: bool = False) -> Array:
        """Logits [B, patches] of the critic; `is_fixed`: its parameters get no gradient."""
        from mmjax.models import critic_module

        critic = critic_module.fixed(self.critic) if is_fixed else self.critic
        return critic(self._array(value_BJP.astype(jnp.dtype(self.compute_dtype))))

    def velocity(self, x_BJP: Array, time_B: Array, vector_BLD: Array) -> Array:
        """Of the flow, [B, J, P] float32, at these times, by the vectors of the codes."""
        x = self._array(x_BJP.astype(jnp.dtype(self.compute_dtype)))
        return self._apart(self.flow(x, time_B, vector_BLD).astype(jnp.float32))

    def codes(self, given: Array) -> Array:
        """Ids [B, Y Z, Q] of pieces [B, J, P], or of ids [B, J]."""
        latent_ND = self._latents(given)
        ids_NQ = self.config.quantizer.quantize(latent_ND, self.codebook.arrays()).ids_NQ
        return ids_NQ.reshape(-1, self.config.num_cells, ids_NQ.shape[-1])

    def pieces(self, ids_BLQ: Array, seed: Array | int = 0) -> Array:
        """Pieces [B, J, P], or ids [B, J], of codes; `seed`: of the noise of a flow."""
        vector_BLD = self.config.quantizer.vectors(ids_BLQ, self.codebook.arrays())
        if flow := self.config.flow:
            from mmjax.models import flow_module

            shape = (self.spec.max_tokens, self.spec.width)
            return flow_module.sampled(flow, self.velocity, vector_BLD, shape, seed)
        out = self._pieces(vector_BLD)
        return jnp.argmax(out, axis=-1).astype(jnp.int32) if self.spec.vocab_size else out

    def _latents(self, given: Array) -> Array:
        """Latents of all cells [B Y Z, D], float32, of pieces [B, J, P] or ids [B, J]."""
        dtype, num = jnp.dtype(self.compute_dtype), self.spec.vocab_size
        x_BIJC = self._array(
            jax.nn.one_hot(given, num, dtype=dtype) if num else given.astype(dtype)
        )
        x = taken_apart(x_BIJC, self.config.code_grid)
        latent_BYZD = self.encoder(rules.constrain_batch(x))
        return latent_BYZD.astype(jnp.float32).reshape(-1, latent_BYZD.shape[-1])

    def _pieces(self, vector_BLD: Array) -> Array:
        x = vector_BLD.astype(jnp.dtype(self.compute_dtype))
        x = self.decoder(x.reshape(-1, *self.config.code_grid, x.shape[-1]))
        return self._apart(put_together(x.astype(jnp.float32), self.array_shape))

    def _apart(self, x_BIJC: Array) -> Array:
        """Pieces [B, J, P] of an array."""
        x = taken_apart(x_BIJC, self._grid)
        if len(self._grid) > 2:  # a piece is by row, column, frame and channel
            x = jnp.moveaxis(x.reshape(*x.shape[:-1], *self.config.piece), -4, -2)
        return x.reshape(-1, self.spec.max_tokens, self.spec.width or self.spec.vocab_size)

    def _array(self, value_BJP: Array) -> Array:
        """The array [B, I, J, C] that the pieces make."""
        x = value_BJP.reshape(-1, *self._grid, value_BJP.shape[-1])
        if len(self._grid) > 2:
            frames, *sides, channels = self.config.piece
            x = x.reshape(*x.shape[:-1], *sides, frames, channels)
            x = jnp.moveaxis(x, -2, -4).reshape(*x.shape[:-4], -1)
        return put_together(x, self.array_shape)

    @property
    def _grid(self) -> tuple[int, ...]:
        """Pieces along each axis of the array."""
        sizes = zip(self.array_shape[:-1], self.config.piece[:-1], strict=True)
        return tuple(size // of for size, of in sizes)


def taken_apart(x_BIJC: Array, grid: tuple[int, ...]) -> Array:
    """Cells [B, *grid, P] of an array, each by row, column and channel."""
    batch, *sizes, channels = x_BIJC.shape
    parts = [n for size, of in zip(sizes, grid, strict=True) for n in (of, size // of)]
    x, axes = x_BIJC.reshape(batch, *parts, channels), 2 * len(grid)
    x = x.transpose(0, *range(1, axes, 2), *range(2, axes + 1, 2), axes + 1)
    return x.reshape(batch, *grid, -1)


def put_together(x: Array, shape: tuple[int, ...]) -> Array:
    """The array [B, *shape] of cells [B, *grid, P]."""
    batch, *grid, _ = x.shape
    cell = [size // of for size, of in zip(shape[:-1], grid, strict=True)]
    axes = len(grid)
    order = [n for axis in range(axes) for n in (1 + axis, 1 + axes + axis)]
    x = x.reshape(batch, *grid, *cell, shape[-1]).transpose(0, *order, 2 * axes + 1)
    return x.reshape(batch, *shape)
