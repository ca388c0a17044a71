"""Contrastive objectives over two or more views, with absent views and several positives."""

from __future__ import annotations

import dataclasses
import itertools

from etils import epy

from mmjax.config import ranges
from mmjax.models import embed as embed_lib
from mmjax.models.block import add_records
from mmjax.objectives import objective
from mmjax.typing import Array, Batch, Loss, Tokens

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(objective.Objective):
    """Base of the contrastive objectives: one embedding per view, pooled and projected.

    Fields:
      temperature: initial value; learned as a parameter of the head `scale/<views>`.
      width: width of the shared space; 0 = model width.
      lanes: lane of a view; other views use the first lane.

    >>> from mmjax.typing import TokenSpec
    >>> image = TokenSpec(name="image", kind="grid", max_tokens=4, width=48)
    >>> text = TokenSpec(name="text", kind="sequence", max_tokens=8, vocab_size=100)
    >>> sorted(InfoNCE(width=16).heads((image, text), ()))
    ['project/image', 'project/text', 'scale/image+text']
    """

    temperature: ranges.Positive = 0.07
    width: ranges.Natural = 0
    lanes: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        ranges.check(self)

    def heads(self, inputs, targets):
        heads: dict[str, embed_lib.Head] = {
            f"project/{spec.name}": embed_lib.Projection(width=self.width) for spec in inputs
        }
        heads[scale_name([s.name for s in inputs])] = self.scale_head()
        return heads

    def scale_head(self) -> embed_lib.Head:
        """The learned scale (and bias) of the similarities."""
        return embed_lib.Scale(temperature=self.temperature)

    def embed(self, model, batch, key):
        features, record = {}, {}
        for view, tokens in batch.views.items():
            encoded = model.encode(tokens, lane=self.lanes.get(view, ""), key=key)
            pooled_BSD = pool(encoded.x_BLD, tokens, batch.identity_BS.shape[1])
            features[view] = objective.unit(model.head(f"project/{view}", pooled_BSD))
            record = add_records(record, encoded.record)
        return features, record


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoNCE(Contrastive):
    """Softmax contrast of every pair of views (CLIP, Radford et al. 2021), both directions.

        l_i = logsumexp_j s_ij - logsumexp_{j: identity_j = identity_i} s_ij,  s = scale * a b^T

    averaged over present pairs, directions and pairs of views. A sample without one of the two
    views is neither anchor nor negative.

    >>> from types import SimpleNamespace as Stub
    >>> import jax.numpy as jnp
    >>> model = Stub(head=lambda name, z: (2.0, None), vocabulary=Stub(number=" ab".index))
    >>> present_BSM, weight_BS = jnp.ones((2, 1, 2), bool), jnp.ones((2, 1))
    >>> batch = Stub(identity_BS=jnp.arange(2), present_BSM=present_BSM, weight_BS=weight_BS)
    >>> z_BSD = jnp.eye(2)[:, None]  # two samples, both views with the same embedding
    >>> losses, metrics, _ = InfoNCE().losses(model, {"a": z_BSD, "b": z_BSD}, batch, None, {})
    >>> losses["a+b"].value_BS.shape, round(float(losses["a+b"].value_BS[0, 0]), 3)
    ((2, 1), 0.127)
    """

    def losses(self, model, features, batch, key, extra):
        views = sorted(features)
        scale, _ = model.head(scale_name(views), features[views[0]])
        losses, metrics = {}, {"scale": scale}
        pairs = list(itertools.combinations(views, 2))
        for a, b in pairs:
            present_N = present(model, batch, (a, b))
            logits_NN = scale * flat(features[a]) @ flat(features[b]).T
            forward = info_nce(logits_NN, batch.identity_BS.reshape(-1), present_N)
            backward = info_nce(logits_NN.T, batch.identity_BS.reshape(-1), present_N)
            weight_N = present_N / jnp.maximum(jnp.sum(present_N), 1.0) / len(pairs)
            shape = batch.weight_BS.shape
            value = (0.5 * (forward + backward)).reshape(shape)
            losses[f"{a}+{b}"] = Loss(value, weight_N.reshape(shape))
            hits = retrieval_hits(logits_NN, batch.identity_BS.reshape(-1), present_N)
            metrics[f"{a}_to_{b}/accuracy"] = objective.mean(hits, present_N)
        return losses, metrics, {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigmoid(Contrastive):
    """Pairwise sigmoid contrast (SigLIP, Zhai et al. 2023).

        l_i = - sum_j log sigmoid( y_ij (scale * a_i b_j + bias) ),  y = 1 for equal identities

    divided by the number of present pairs.

    >>> from types import SimpleNamespace as Stub
    >>> import jax.numpy as jnp
    >>> model = Stub(head=lambda name, z: (4.0, -2.0), vocabulary=Stub(number=" ab".index))
    >>> present_BSM, weight_BS = jnp.ones((2, 1, 2), bool), jnp.ones((2, 1))
    >>> batch = Stub(identity_BS=jnp.arange(2), present_BSM=present_BSM, weight_BS=weight_BS)
    >>> z_BSD = jnp.eye(2)[:, None]  # two samples, both views with the same embedding
    >>> losses, metrics, _ = Sigmoid().losses(model, {"a": z_BSD, "b": z_BSD}, batch, None, {})
    >>> losses["a+b"].value_BS.shape, round(float(losses["a+b"].value_BS[0, 0]), 3)
    ((2, 1), 0.254)
    """

    temperature: ranges.Positive = 0.1
    bias: ranges.Finite = -10.0

    def scale_head(self):
        return embed_lib.Scale(temperature=self.temperature, bias=self.bias)

    def losses(self, model, features, batch, key, extra):
        views = sorted(features)
        scale, bias = model.head(scale_name(views), features[views[0]])
        losses, metrics = {}, {"scale": scale, "bias": bias}
        pairs = list(itertools.combinations(views, 2))
        for a, b in pairs:
            present_N = present(model, batch, (a, b))
            identity_N = batch.identity_BS.reshape(-1)
            logits_NN = scale * flat(features[a]) @ flat(features[b]).T + bias
            same_NN = identity_N[:, None] == identity_N[None, :]
            token = -jax.nn.log_sigmoid(jnp.where(same_NN, logits_NN, -logits_NN))
            value_N = jnp.sum(token * present_N[None, :], axis=1)
            weight_N = present_N / jnp.maximum(jnp.sum(present_N), 1.0) / len(pairs)
            shape = batch.weight_BS.shape
            losses[f"{a}+{b}"] = Loss(value_N.reshape(shape), weight_N.reshape(shape))
            hits = retrieval_hits(logits_NN, identity_N, present_N)
            metrics[f"{a}_to_{b}/accuracy"] = objective.mean(hits, present_N)
        return losses, metrics, {}


def scale_name(views) -> str:
    """Name of the scale head of a set of views."""
    return "scale/" + "+".join(sorted(views))


def flat(features_BSD: Array) -> Array:
    """[B, S, D] to [B * S, D]."""
    return features_BSD.reshape(-1, features_BSD.shape[-1])


def pool(x_BLD: Array, tokens: Tokens, num_slots: int) -> Array:
    """Mean over the tokens of each sample slot, [B, S, D] float32; an empty slot is zero."""
    slots = jnp.arange(1, num_slots + 1)[None, None, :]
    member = (tokens.segment_BL[:, :, None] == slots) & (tokens.stream_BL > 0)[:, :, None]
    member_BLS = member.astype(jnp.float32)
    total = jnp.einsum("BLS,BLD->BSD", member_BLS, x_BLD.astype(jnp.float32))
    return total / jnp.maximum(jnp.sum(member_BLS, axis=1), 1.0)[:, :, None]


def present(model, batch: Batch, views) -> Array:
    """1.0 for samples that have all the views and are not padding, [B * S]."""
    out = batch.weight_BS.reshape(-1) > 0
    for view in views:
        out &= batch.present_BSM[:, :, model.vocabulary.number(view) - 1].reshape(-1)
    return out.astype(jnp.float32)


def info_nce(logits_NN: Array, identity_N: Array, present_N: Array) -> Array:
    """Loss of each anchor; absent candidates do not count, all equal identities are positives."""
    candidates_NN = jnp.where(present_N[None, :] > 0, logits_NN, -1e30)
    same_NN = identity_N[:, None] == identity_N[None, :]
    positives_NN = jnp.where(same_NN, candidates_NN, -1e30)
    loss_N = jax.nn.logsumexp(candidates_NN, axis=1) - jax.nn.logsumexp(positives_NN, axis=1)
    return jnp.where(present_N > 0, loss_N, 0.0)


def retrieval_hits(logits_NN: Array, identity_N: Array, present_N: Array) -> Array:
    """1.0 for anchors whose best candidate has their identity."""
    best_N = jnp.argmax(jnp.where(present_N[None, :] > 0, logits_NN, -jnp.inf), axis=1)
    return (identity_N[best_N] == identity_N).astype(jnp.float32)
