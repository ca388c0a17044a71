"""Contrast and captioning from one encoding of each view (CoCa, Yu et al. 2022)."""

from __future__ import annotations

import dataclasses

from etils import epy

from mmjax.config import ranges
from mmjax.models.block import add_records
from mmjax.objectives import contrastive, generative, objective
from mmjax.typing import Array, Loss, Tokens

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from mmjax.models import module

TARGET = "target"  # the view of the targets, as `Aligned` names it


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoCa(objective.Objective):
    """Contrasts the inputs and predicts the targets, encoding each input once for both.

        loss = contrast + caption_weight * caption

    The targets of a sample, sequences such as its text, are decoded left to right from the encoding
    of one of its other inputs, drawn at random: what generation from one input asks for. With the
    layout `Aligned`; the model needs a lane that reads, as that of an encoder-decoder does.

    Fields:
      contrast: compares the inputs, by vectors of their own. caption: predicts the targets.
      caption_weight: 2 in the paper.

    >>> from mmjax.typing import TokenSpec
    >>> image = TokenSpec(name="image", kind="grid", max_tokens=4, width=48)
    >>> text = TokenSpec(name="text", kind="sequence", max_tokens=8, vocab_size=100)
    >>> sorted(CoCa().heads((image, text), (text,)))
    ['project/image', 'project/text', 'scale/image+text', 'vocabulary']
    """

    contrast: contrastive.Contrastive = contrastive.InfoNCE()
    caption: generative.MaskedTokens = generative.NextToken()
    caption_weight: ranges.Positive = 2.0

    def __post_init__(self):
        ranges.check(self)

    @property
    def target_balance(self) -> str:
        return self.caption.target_balance

    @property
    def generates(self) -> bool:
        return True

    @property
    def mixes_streams(self) -> bool:
        return False

    @property
    def is_pooled(self) -> bool:
        return self.contrast.is_pooled

    def check(self, task, specs, lanes):
        self.contrast.check(dataclasses.replace(task, targets=()), specs, lanes)
        self.caption.check(task, specs, lanes)
        if not self.contrast.is_pooled:
            raise ValueError(
                f"contrast={type(self.contrast).__name__} does not compare pooled vectors of an"
                " encoding, so that none can be shared; use InfoNCE, Sigmoid or Symile."
            )
        if not set(task.inputs) - set(task.targets):
            raise ValueError(
                f"targets={task.targets} leave none of inputs={task.inputs} to predict them from;"
                " name an input that is no target."
            )
        if TARGET in task.inputs:
            raise ValueError(
                f"inputs={task.inputs}: {TARGET!r} is the name of the view of targets."
            )

    def heads(self, inputs, targets):
        return self.contrast.heads(inputs, targets) | self.caption.heads(inputs, targets)

    def extra(self):
        return self.contrast.extra()

    def views(self, task):
        return tuple(task.inputs)

    def lane(self, view):
        return self.contrast.lane(view)

    def represent(self, model, tokens, view, num_slots, key=None):
        return self.contrast.represent(model, tokens, view, num_slots, key)

    def similarity(self, a_NX, b_MX):
        return self.contrast.similarity(a_NX, b_MX)

    def prototype(self, z_PX):
        return self.contrast.prototype(z_PX)

    def logit_scale(self, model, views):
        return self.contrast.logit_scale(model, views)

    def embed(self, model, batch, key):
        """Vectors of the inputs by name, and value and hits of the targets, [B, S, 2]."""
        if TARGET not in batch.views or "input" in batch.views:
            raise ValueError(
                f"CoCa: layout gives the views {', '.join(batch.views)}; it needs a view of each"
                " input, encoded by itself, and one of the targets; use Aligned()."
            )
        features, record, memories = {}, {}, {}
        slots = batch.identity_BS.shape[1]
        for view, tokens in batch.views.items():
            if view == TARGET:
                continue
            encoded = model.encode(tokens, lane=self.lane(view), key=key)
            record = add_records(record, encoded.record)
            features[view] = self.contrast.vectors(model, encoded, view, slots)
            if view not in batch.targets:
                memories[view] = encoded
        memory = one_of(memories, slots, jax.random.fold_in(key, 1))
        decoded = model.decode(batch.views[TARGET], memory, key=key)
        for stream, targets in batch.targets.items():
            token_loss, hits = self.caption.token_losses(model, decoded.x_BLD, stream, targets)
            told = [generative.per_sample(x, targets, batch).value_BS for x in (token_loss, hits)]
            features[f"{TARGET}/{stream}"] = jnp.stack(told, axis=-1)
        return features, add_records(record, decoded.record)

    def losses(self, model, features, batch, key, extra):
        told = {stream: features[f"{TARGET}/{stream}"] for stream in batch.targets}
        vectors = {name: x for name, x in features.items() if not name.startswith(f"{TARGET}/")}
        losses, metrics, record = self.contrast.losses(model, vectors, batch, key, extra)
        for stream, targets in batch.targets.items():
            weight_BS = generative.per_sample(targets.weight_WU, targets, batch).weight_BS
            losses[stream] = Loss(told[stream][..., 0], self.caption_weight * weight_BS)
            for number, name in enumerate(("loss", "accuracy")):
                value = objective.mean(told[stream][..., number], weight_BS)
                metrics[f"{stream}/{name}"] = value
        return losses, metrics, record


def one_of(encoded: dict[str, module.Encoded], num_slots: int, key: Array) -> module.Encoded:
    """The encodings of several views side by side, [B, sum of L, D], in which each sample shows one
    view, drawn from those that it has."""
    every, slots = list(encoded.values()), jnp.arange(1, num_slots + 1)
    has = [jnp.any(e.tokens.segment_BL[:, None, :] == slots[None, :, None], axis=-1) for e in every]
    draw_VBS = jax.random.uniform(key, (len(every), *has[0].shape))
    drawn_BS = jnp.argmax(jnp.where(jnp.stack(has), draw_VBS, -1.0), axis=0)
    parts = []
    for number, one in enumerate(every):
        shown = jnp.pad(drawn_BS == number, ((0, 0), (1, 0)))  # slot 0 is padding
        segment = one.tokens.segment_BL
        segment = jnp.where(jnp.take_along_axis(shown, segment, axis=1), segment, 0)
        stream = jnp.where(segment > 0, one.tokens.stream_BL, 0)
        tokens = one.tokens
        parts.append((tokens.ids_BL, stream, segment, tokens.order_BL, tokens.position_BLA))
    join = lambda arrays: jnp.concatenate(arrays, axis=1)
    ids, stream, segment, order, position = map(join, zip(*parts, strict=True))
    return module.Encoded(
        join([e.x_BLD for e in every]), Tokens(ids, stream, segment, order, position)
    )
