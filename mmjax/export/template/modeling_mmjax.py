"""An encoder trained by mmjax, and its projections into the shared space, in PyTorch.

Shape letters: B batch, L tokens, D width, H heads, K key/value heads, G head width, E experts,
F inner width, P numbers of a continuous piece, T = B * L tokens.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_mmjax import MMJaxConfig

NUM_AXES = 3  # positions are (time, row, column)


def empty(*shape):
    """A parameter that a checkpoint fills."""
    return nn.Parameter(torch.zeros(*shape))


class Norm(nn.Module):
    """RMS or layer norm with a weight, in float32."""

    def __init__(self, width, kind, eps):
        super().__init__()
        self.kind, self.eps = kind, eps
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = x.float()
        if self.kind == "layer":
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.scale.float()).to(x.dtype)


class Attention(nn.Module):
    """Self-attention with QK-norm and rotary positions where the config says so."""

    def __init__(self, config):
        super().__init__()
        width, g = config.width, config.head_dim
        self.rotary, self.qk_norm = config.position == "rotary", config.qk_norm
        self.query = empty(width, config.num_heads, g)
        self.key = empty(width, config.num_kv_heads, g)
        self.value = empty(width, config.num_kv_heads, g)
        self.out = empty(config.num_heads, g, width)
        if self.qk_norm:
            self.query_norm = Norm(g, "rms", config.norm_eps)
            self.key_norm = Norm(g, "rms", config.norm_eps)

    def forward(self, x_BLD, mask_BL, angle_LG):
        q = torch.einsum("bld,dhg->blhg", x_BLD, self.query)
        k = torch.einsum("bld,dkg->blkg", x_BLD, self.key)
        v = torch.einsum("bld,dkg->blkg", x_BLD, self.value)
        if self.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary:
            q, k = rotate(q, angle_LG), rotate(k, angle_LG)
        q = q.unflatten(2, (k.shape[2], -1))
        logits = torch.einsum("bqkhg,blkg->bkhql", q.float(), k.float()) * q.shape[-1] ** -0.5
        logits = logits.masked_fill(~mask_BL[:, None, None, None, :], -1e30)
        out = torch.einsum("bkhql,blkg->bqkhg", logits.softmax(-1).to(v.dtype), v)
        return torch.einsum("blhg,hgd->bld", out.flatten(2, 3), self.out)


class Mlp(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, width, inner):
        super().__init__()
        self.up, self.gate, self.down = (
            empty(width, inner),
            empty(width, inner),
            empty(inner, width),
        )

    def forward(self, x):
        return swiglu(x, self.up, self.gate, self.down)


class Experts(nn.Module):
    """SwiGLU experts; each token takes the top-k by score plus a selection bias."""

    def __init__(self, width, num_experts, inner, num_experts_per_tok):
        super().__init__()
        self.num_chosen = num_experts_per_tok
        self.router = empty(width, num_experts)
        self.up = empty(num_experts, width, inner)
        self.gate = empty(num_experts, width, inner)
        self.down = empty(num_experts, inner, width)
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, x):
        x_TD = x.flatten(0, 1)
        scores_TE = torch.sigmoid(x_TD.float() @ self.router.float())
        chosen_TX = torch.topk(scores_TE + self.bias.float(), self.num_chosen, dim=-1).indices
        weight_TX = scores_TE.gather(-1, chosen_TX)
        weight_TX = (weight_TX / (weight_TX.sum(-1, keepdim=True) + 1e-9)).to(x.dtype)
        out_TD = torch.zeros_like(x_TD)
        for e in range(self.router.shape[1]):
            token, choice = torch.where(chosen_TX == e)
            y = swiglu(x_TD[token], self.up[e], self.gate[e], self.down[e])
            out_TD.index_add_(0, token, y * weight_TX[token, choice, None])
        return out_TD.view_as(x)


class Block(nn.Module):
    """Pre-norm block: self-attention, then a feed-forward or experts."""

    def __init__(self, config, experts):
        super().__init__()
        norm = (config.width, config.norm, config.norm_eps)
        self.norm1, self.attention = Norm(*norm), Attention(config)
        self.norm2 = Norm(*norm)
        if experts:
            self.mlp = Experts(
                config.width,
                experts["num_experts"],
                experts["width"],
                experts["num_experts_per_tok"],
            )
        else:
            self.mlp = Mlp(config.width, config.mlp_width)

    def forward(self, x_BLD, mask_BL, angle_LG):
        x_BLD = x_BLD + self.attention(self.norm1(x_BLD), mask_BL, angle_LG)
        return x_BLD + self.mlp(self.norm2(x_BLD))


class Lane(nn.Module):
    """Blocks and the norm behind the last."""

    def __init__(self, config, blocks):
        super().__init__()
        self.blocks = nn.ModuleList([Block(config, experts) for experts in blocks])
        self.norm = Norm(config.width, config.norm, config.norm_eps)

    def forward(self, x_BLD, mask_BL, angle_LG):
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_BL, angle_LG)
        return self.norm(x_BLD)


class Stream(nn.Module):
    """The vector of a stream, and what turns its continuous pieces into vectors."""

    def __init__(self, width, piece_width, stem):
        super().__init__()
        self.stream, self.stem = empty(width), stem
        for i, stage in enumerate(stem["stages"] if stem else []):
            taps = (2 * stage["reach"][0] + 1) * (2 * stage["reach"][1] + 1)
            setattr(self, f"kernel_{i}", empty(taps * stage["wide"], stage["out"]))
            setattr(self, f"scale_{i}", empty(stage["out"]))
            setattr(self, f"bias_{i}", empty(stage["out"]))
        if stem:
            piece_width = stem["pieces"][3] * stem["pieces"][4] * stem["stages"][-1]["out"]
            for stage in stem["stages"]:
                piece_width //= stage["stride"][0] * stage["stride"][1]
        if piece_width:
            self.piece = empty(piece_width, width)

    def pieces(self, values):
        """Vectors [B, L, D] of all pieces [B, L, P] of the grid."""
        return (self.convolved(values) if self.stem else values) @ self.piece

    def convolved(self, values):
        """Pieces after the convolutions over the picture that they make, [B, L, P]."""
        _, h, w, high, wide, channels = self.stem["pieces"]
        x = values.reshape(-1, h, w, high, wide, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, h * high, w * wide, channels)
        for i, stage in enumerate(self.stem["stages"]):
            (down, right), (dy, dx) = stage["reach"], stage["stride"]
            rows, columns = x.shape[1:3]
            padded = nn.functional.pad(x, (0, 0, right, right, down, down))
            shifted = [
                padded[:, r : r + rows : dy, c : c + columns : dx]
                for r in range(2 * down + 1)
                for c in range(2 * right + 1)
            ]
            x = torch.cat(shifted, -1) @ getattr(self, f"kernel_{i}")
            scale, bias = getattr(self, f"scale_{i}"), getattr(self, f"bias_{i}")
            x = nn.functional.layer_norm(x, scale.shape, scale, bias, 1e-6)
            x = nn.functional.gelu(x, approximate="tanh")
            high, wide = high // dy, wide // dx
        x = x.reshape(-1, h, high, w, wide, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(*values.shape[:2], -1)


class Table(nn.Module):
    """Embeddings of token ids."""

    def __init__(self, rows, width):
        super().__init__()
        self.table = empty(rows, width)


class Projection(nn.Module):
    """Into the shared space."""

    def __init__(self, width, out):
        super().__init__()
        self.kernel = empty(width, out)


class MMJaxModel(PreTrainedModel):
    """Unit embeddings of every stream in one space.

    `model(**processor(image=[...], text=[...]))` gives `image_embeds`, `text_embeds`: [B, D].
    """

    config_class = MMJaxConfig
    base_model_prefix = "mmjax"

    def __init__(self, config):
        super().__init__(config)
        width, streams = config.width, config.streams
        self.embed = nn.ModuleDict(
            {name: Stream(width, s["piece_width"], s.get("stem")) for name, s in streams.items()}
        )
        self.tables = nn.ModuleDict({name: Table(n, width) for name, n in config.tables.items()})
        self.lanes = nn.ModuleDict({name: Lane(config, b) for name, b in config.lanes.items()})
        self.project = nn.ModuleDict(
            {name: Projection(width, s["projection"]) for name, s in streams.items()}
        )
        self.post_init()

    def _init_weights(self, module):
        """Nothing: every parameter comes from the checkpoint."""

    def forward(self, return_dict=None, **values):
        """Embeddings of the given streams as `<stream>_embeds`, each [B, D] of unit length.

        Args:
          values: by stream, what the processor makes: pieces float [B, L, P], or token ids
            [B, L] with -1 behind the end.
        """
        found = {f"{name}_embeds": self.encode(name, value) for name, value in values.items()}
        return tuple(found.values()) if return_dict is False else ModelOutput(**found)

    def encode(self, name, values):
        """Unit embeddings [B, D] of one stream."""
        if name not in self.config.streams:
            raise ValueError(f"no stream {name!r}; there is {', '.join(self.config.streams)}.")
        stream, config, dtype = self.config.streams[name], self.config, self.dtype
        if stream["piece_width"]:
            x_BLD = self.embed[name].pieces(values.to(dtype))
            mask_BL = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        else:
            mask_BL = values >= 0
            x_BLD = self.tables[stream["table"]].table[values.clamp(min=0)] * config.width**0.5
        position_LA = positions(stream["grid"], values.shape[1]).to(values.device)
        where_LD = self.embed[name].stream
        if config.position != "rotary":
            where_LD = where_LD + sincos(
                position_LA, config.width, config.max_wavelength, config.position
            )
        angle_LG = angles(position_LA, config.head_dim, config.max_wavelength)
        x_BLD = (x_BLD + where_LD).to(dtype)
        x_BLD = self.lanes[stream["lane"]](x_BLD, mask_BL, angle_LG).float()
        weight_BL = mask_BL.float()
        pooled_BD = torch.einsum("bl,bld->bd", weight_BL, x_BLD)
        pooled_BD = pooled_BD / weight_BL.sum(1, keepdim=True).clamp(min=1.0)
        z_BD = pooled_BD @ self.project[name].kernel.float()
        return z_BD * torch.rsqrt(z_BD.square().sum(-1, keepdim=True).clamp(min=1e-12))


def swiglu(x, up, gate, down):
    """(silu(x gate) * (x up)) down."""
    return (nn.functional.silu(x @ gate) * (x @ up)) @ down


def positions(grid, length):
    """Positions [L, A]: (time, row, column) of a grid, or one number on all axes."""
    if not grid:
        return torch.arange(length, dtype=torch.float32)[:, None].expand(-1, NUM_AXES)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    return torch.stack(axes, -1).reshape(-1, NUM_AXES)


def angles(position_LA, width, max_wavelength):
    """Angles [L, width / 2]; the pairs of channels take the three axes in turn."""
    pairs = torch.arange(width // 2, device=position_LA.device)
    frequency = torch.tensor(max_wavelength, device=position_LA.device) ** -(
        pairs.float() / max(width // 2, 1)
    )
    return position_LA[:, pairs % NUM_AXES] * frequency


def sincos(position_LA, width, max_wavelength, layout="sincos"):
    """Fixed position vectors [L, D]: of all axes in turn, of columns and rows, or of time."""
    axes = {"vit_mae": (2, 1), "whisper": (0,)}.get(layout)
    if axes:
        channels = width // len(axes) // 2
        steps = channels - 1 if layout == "whisper" else channels
        powers = torch.arange(channels, device=position_LA.device) / max(steps, 1)
        frequency = torch.tensor(max_wavelength, device=position_LA.device) ** -powers
        angle = position_LA[:, list(axes), None] * frequency
        out = torch.cat([angle.sin(), angle.cos()], -1).reshape(len(position_LA), -1)
        return nn.functional.pad(out, (0, width - out.shape[-1]))
    angle = angles(position_LA, width, max_wavelength)
    out = torch.cat([angle.sin(), angle.cos()], -1)
    return nn.functional.pad(out, (0, width - out.shape[-1]))


def rotate(x_BLHG, angle_LG):
    """Turns the two halves of each head by the angles."""
    cos, sin = (f(angle_LG)[:, None, :].to(x_BLHG.dtype) for f in (torch.cos, torch.sin))
    first, second = x_BLHG.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
