"""Contrastive objectives over two or more views, with absent views and several positives."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np
from etils import epy

from mmjax.config import ranges
from mmjax.config.error import nearest
from mmjax.models import embed as embed_lib
from mmjax.models.block import add_records
from mmjax.objectives import objective
from mmjax.typing import Array, Batch, Loss, Tokens

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

if TYPE_CHECKING:
    from mmjax.models.module import Encoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(objective.Objective):
    """Base of the contrastive objectives: pairs of views, compared by the vectors of their samples.

    The base knows who is present, how pairs are weighted and what is measured. A member says the
    loss of an anchor (`value`), and, if it compares by more than the product of two pooled
    vectors, `represent` and `similarity`. Its losses are averaged over present pairs of samples
    and over pairs of views; a sample without one of the two views is neither anchor nor negative.

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

    @property
    def has_bias(self) -> bool:
        """Whether the learned bias of the scale head is added to its logits."""
        return False

    @property
    def mixes_streams(self) -> bool:
        return False

    @property
    def is_pooled(self) -> bool:
        own = type(self)
        base = Contrastive
        whole = (base.represent, base.vectors, base.similarity)
        return (own.represent, own.vectors, own.similarity) == whole

    def check(self, task, specs, lanes):
        objective.check_stack(self, lanes)
        if task.targets:
            raise ValueError(
                f"targets={task.targets} are predicted by no {type(self).__name__}; leave them out,"
                " or use CoCa(contrast=...), which contrasts and predicts."
            )
        if len(task.inputs) < 2:
            raise ValueError(
                f"inputs={task.inputs} has fewer than two views to contrast; name two."
            )
        for variant, shape in task.shapes().items():
            if shape.batch_size < 2:
                where = f"variant {variant!r}: " if task.variants else ""
                raise ValueError(
                    f"{where}batch_size={shape.batch_size} leaves a contrastive objective without"
                    " negatives; use 2 or more."
                )
        for view, lane in self.lanes.items():
            if lane not in lanes:
                raise ValueError(
                    f"lane {lane!r} of view {view!r} is not in the model{nearest(lane, lanes)}"
                )
        own = type(self)
        if own.embed is not Contrastive.embed and own.represent is Contrastive.represent:
            raise ValueError(
                f"objective {own.__name__} defines embed() without represent(), so that it would"
                " be scored by vectors that it did not train; define represent()."
            )

    def heads(self, inputs, targets):
        heads: dict[str, embed_lib.Head] = {
            f"project/{spec.name}": embed_lib.Projection(width=self.width) for spec in inputs
        }
        heads[scale_name([s.name for s in inputs])] = self.scale_head()
        return heads

    def scale_head(self) -> embed_lib.Head:
        """The learned scale (and bias) of the similarities."""
        return embed_lib.Scale(temperature=self.temperature)

    def views(self, task):
        return tuple(task.inputs)

    def lane(self, view):
        return self.lanes.get(view, "")

    def embed(self, model, batch, key):
        features, record = {}, {}
        for view, tokens in batch.views.items():
            slots = batch.identity_BS.shape[1]
            features[view], more = self.represent(model, tokens, view, slots, key)
            record = add_records(record, more)
        return features, record

    def represent(self, model, tokens, view, num_slots, key=None):
        """The mean over the tokens of each sample, projected, of unit length: [B, S, D]."""
        encoded = model.encode(tokens, lane=self.lane(view), key=key)
        return self.vectors(model, encoded, view, num_slots), encoded.record

    def vectors(self, model, encoded: Encoded, view: str, num_slots: int) -> Array:
        """What `represent` makes of an encoded view, for who needs the encoding too."""
        pooled_BSD = pool(encoded.x_BLD, encoded.tokens, num_slots)
        return objective.unit(model.head(f"project/{view}", pooled_BSD))

    def similarity(self, a_NX, b_MX):
        return a_NX @ b_MX.T

    def prototype(self, z_PX):
        if not self.is_pooled:
            return None
        z_D = np.asarray(z_PX).mean(0)
        return z_D / (np.linalg.norm(z_D, axis=-1, keepdims=True) + 1e-12)

    def logit_scale(self, model, views):
        return model.head(scale_name(views), jnp.zeros(()))[0]

    def value(self, logits_NN: Array, same_NN: Array, present_N: Array) -> Array:
        """Loss [N] of each anchor, a row of the logits; `same_NN` marks its positives, `present_N`
        (1.0 or 0.0) the candidates that exist."""
        raise NotImplementedError(f"{type(self).__name__} must define value() or losses().")

    def losses(self, model, features, batch, key, extra):
        views = sorted(features)
        scale, bias = model.head(scale_name(views), features[views[0]])
        losses, metrics = {}, {"scale": scale, **({"bias": bias} if self.has_bias else {})}
        pairs = list(itertools.combinations(views, 2))
        identity_N, shape = batch.identity_BS.reshape(-1), batch.weight_BS.shape
        for a, b in pairs:
            present_N = present(model, batch, (a, b))
            logits_NN = self._scaled(scale, flat(features[a]), flat(features[b]))
            logits_NN = logits_NN + bias if self.has_bias else logits_NN
            value_N = self.value(logits_NN, identity_N[:, None] == identity_N[None, :], present_N)
            weight_N = present_N / jnp.maximum(jnp.sum(present_N), 1.0) / len(pairs)
            losses[f"{a}+{b}"] = Loss(value_N.reshape(shape), weight_N.reshape(shape))
            hits = retrieval_hits(logits_NN, identity_N, present_N)
            metrics[f"{a}_to_{b}/accuracy"] = objective.mean(hits, present_N)
        return losses, metrics, {}

    def _scaled(self, scale, a_NX, b_NX):
        """scale * similarity; where that is a product, its factor is scaled, N x D numbers."""
        if type(self).similarity is Contrastive.similarity:
            return scale * a_NX @ b_NX.T
        return scale * self.similarity(a_NX, b_NX)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoNCE(Contrastive):
    """Softmax contrast of every pair of views (CLIP, Radford et al. 2021), both directions.

        l_i = logsumexp_j s_ij - logsumexp_{j: identity_j = identity_i} s_ij,  s = scale * a b^T

    averaged over the two directions.

    >>> from types import SimpleNamespace as Stub
    >>> import jax.numpy as jnp
    >>> model = Stub(head=lambda name, z: (2.0, 0.0), vocabulary=Stub(number=" ab".index))
    >>> present_BSM, weight_BS = jnp.ones((2, 1, 2), bool), jnp.ones((2, 1))
    >>> batch = Stub(identity_BS=jnp.arange(2), present_BSM=present_BSM, weight_BS=weight_BS)
    >>> z_BSD = jnp.eye(2)[:, None]  # two samples, both views with the same embedding
    >>> losses, metrics, _ = InfoNCE().losses(model, {"a": z_BSD, "b": z_BSD}, batch, None, {})
    >>> losses["a+b"].value_BS.shape, round(float(losses["a+b"].value_BS[0, 0]), 3)
    ((2, 1), 0.127)
    """

    def value(self, logits_NN, same_NN, present_N):
        forward = info_nce(logits_NN, same_NN, present_N)
        return 0.5 * (forward + info_nce(logits_NN.T, same_NN.T, present_N))


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

    @property
    def has_bias(self) -> bool:
        return True

    def scale_head(self):
        return embed_lib.Scale(temperature=self.temperature, bias=self.bias)

    def value(self, logits_NN, same_NN, present_N):
        token_NN = -jax.nn.log_sigmoid(jnp.where(same_NN, logits_NN, -logits_NN))
        return jnp.sum(token_NN * present_N[None, :], axis=1)


def scale_name(views) -> str:
    """Name of the scale head of a set of views."""
    return "scale/" + "+".join(sorted(views))


def flat(features_BSX: Array) -> Array:
    """[B, S, ...] to [B * S, ...]."""
    return features_BSX.reshape(-1, *features_BSX.shape[2:])


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


def info_nce(logits_NN: Array, same_NN: Array, present_N: Array) -> Array:
    """Loss of each anchor; absent candidates do not count, all of the same are positives."""
    candidates_NN = jnp.where(present_N[None, :] > 0, logits_NN, -1e30)
    positives_NN = jnp.where(same_NN, candidates_NN, -1e30)
    loss_N = jax.nn.logsumexp(candidates_NN, axis=1) - jax.nn.logsumexp(positives_NN, axis=1)
    return jnp.where(present_N > 0, loss_N, 0.0)


def retrieval_hits(logits_NN: Array, identity_N: Array, present_N: Array) -> Array:
    """1.0 for anchors whose best candidate has their identity."""
    best_N = jnp.argmax(jnp.where(present_N[None, :] > 0, logits_NN, -jnp.inf), axis=1)
    return (identity_N[best_N] == identity_N).astype(jnp.float32)
