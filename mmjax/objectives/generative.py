"""Generative objectives: masked tokens (4M) and next token, for ids and continuous pieces."""

from __future__ import annotations

import dataclasses

from etils import epy

from mmjax.config import ranges
from mmjax.models import embed as embed_lib
from mmjax.models.block import add_records
from mmjax.objectives import objective
from mmjax.typing import Array, Batch, Loss, Targets

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedTokens(objective.Objective):
    """Predicts the targets of each stream: cross-entropy for ids, squared error for values.

    With views `input` and `target` it encodes one and decodes the other (4M, Mizrahi et al. 2023;
    `decode` of the encoder-decoder); with `input` alone the targets lie in the same view.

        loss = mean over target streams of ( sum_u w_u l_u / sum_u w_u )

    The training step divides, by the weights of the global batch.
    Fields:
      vocab_chunk: number of ids whose logits are in memory at a time; 0 = all.
      balance: `stream` = target streams have equal weight; `token` = tokens have equal weight.

    >>> from types import SimpleNamespace as Stub
    >>> import jax.numpy as jnp
    >>> from mmjax.typing import Targets
    >>> encoded = Stub(x_BLD=2 * jnp.eye(2)[None], record={})  # a row of two tokens
    >>> logits = lambda name, x, stream: Stub(x=x, table_VD=jnp.eye(2))
    >>> model = Stub(encode=lambda tokens, key: encoded, head=logits)
    >>> zero, slot = jnp.zeros((1, 2), int), jnp.array([[0, 1]])
    >>> text = Targets(zero, slot, zero, weight_WU=jnp.ones((1, 2)), label_WU=slot)
    >>> batch = Stub(views={"input": None}, targets={"text": text}, weight_BS=jnp.ones((1, 1)))
    >>> losses, metrics, _ = MaskedTokens().losses(model, {}, batch, None, {})
    >>> round(float(losses["text"].value_BS[0, 0]), 3), float(metrics["text/accuracy"])
    (0.127, 1.0)
    """

    vocab_chunk: ranges.Natural = 8192
    balance: str = "stream"
    z_loss_weight: ranges.NonNegative = 0.0

    def __post_init__(self):
        ranges.check(self)

    @property
    def target_balance(self) -> str:
        return self.balance

    @property
    def generates(self) -> bool:
        return True

    def check(self, task, specs, lanes):
        objective.check_stack(self, lanes)
        if not task.targets:
            raise ValueError("targets=() leaves nothing to predict; name a modality.")

    def heads(self, inputs, targets):
        heads: dict[str, embed_lib.Head] = {}
        for spec in targets:
            if spec.vocab_size:
                heads["vocabulary"] = embed_lib.VocabularyHead()
            else:
                heads[f"value/{spec.name}"] = embed_lib.ValueHead(stream=spec.name)
        return heads

    def losses(self, model, features, batch, key, extra):
        encoded = model.encode(batch.views["input"], key=key)
        record = encoded.record
        if "target" in batch.views:
            decoded = model.decode(batch.views["target"], encoded, key=key)
            record = add_records(record, decoded.record)
            encoded = decoded
        losses, metrics = {}, {}
        for stream, targets in batch.targets.items():
            token_loss, hits = self.token_losses(model, encoded.x_BLD, stream, targets)
            losses[stream] = per_sample(token_loss, targets, batch)
            metrics[f"{stream}/loss"] = objective.mean(token_loss, targets.weight_WU)
            if hits is not None:
                metrics[f"{stream}/accuracy"] = objective.mean(hits, targets.weight_WU)
        return losses, metrics, record

    def token_losses(self, model, x_BLD: Array, stream: str, targets: Targets):
        """Losses [W, U] of the targets of a stream, and hits; None for continuous ones."""
        x_WUD = gather_slots(x_BLD, targets)
        if targets.label_WU is None:
            predicted = model.head(f"value/{stream}", x_WUD)
            error = jnp.square(predicted - targets.value_WUP.astype(jnp.float32))
            return jnp.mean(error, axis=-1), None
        logits = model.head("vocabulary", x_WUD, stream=stream)
        return cross_entropy(
            logits.x, logits.table_VD, targets.label_WU, self.vocab_chunk, self.z_loss_weight
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken(MaskedTokens):
    """Left-to-right prediction of the targets that the layout (`Prefix`, `Spans`) selects.

    >>> from mmjax.typing import TokenSpec
    >>> text = TokenSpec(name="text", kind="sequence", max_tokens=8, vocab_size=100)
    >>> image = TokenSpec(name="image", kind="grid", max_tokens=4, width=48)
    >>> NextToken(balance="token").heads((), (text, image))
    {'vocabulary': VocabularyHead(), 'value/image': ValueHead(stream='image')}
    """


def gather_slots(x_BLD: Array, targets: Targets) -> Array:
    """Features [W, U, D] at the target places; gathers stay within a group."""
    groups, length = targets.row_WU.shape[0], x_BLD.shape[1]
    x = x_BLD.reshape(groups, -1, x_BLD.shape[-1])
    index_WU = targets.row_WU * length + targets.slot_WU
    return jnp.take_along_axis(x, index_WU[:, :, None], axis=1)


def cross_entropy(
    x_WUD: Array, table_VD: Array, label_WU: Array, chunk: int, z_loss_weight: float = 0.0
) -> tuple[Array, Array]:
    """Token losses [W, U] and hits, in float32; logits exist for `chunk` ids at a time."""
    vocab = table_VD.shape[0]

    def part(table_CD):
        logits = jnp.einsum("WUD,VD->WUV", x_WUD, table_CD, preferred_element_type=jnp.float32)
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
        return top, jnp.sum(jnp.exp(logits - top[:, :, None]), axis=-1), logits

    label_x = jnp.take(table_VD, label_WU, axis=0)
    label_logit = jnp.einsum(
        "WUD,WUD->WU", x_WUD, label_x, preferred_element_type=jnp.float32
    )  # fmt: skip
    if not chunk or vocab <= chunk:
        top, total, logits = part(table_VD)
        label_logit = jnp.take_along_axis(logits, label_WU[:, :, None], axis=-1)[..., 0]
    else:
        parts = [
            jax.checkpoint(lambda t: part(t)[:2])(table_VD[i : i + chunk])
            for i in range(0, vocab, chunk)
        ]
        tops = jnp.stack([t for t, _ in parts])
        top = jnp.max(tops, axis=0)
        total = sum(s * jnp.exp(t - top) for t, s in parts)
    log_total = jnp.log(total) + top
    loss = log_total - label_logit
    if z_loss_weight:
        loss = loss + z_loss_weight * jnp.square(log_total)
    return loss, (label_logit >= top).astype(jnp.float32)


def per_sample(token_loss_WU: Array, targets: Targets, batch: Batch) -> Loss:
    """One loss per sample: value = weighted mean of token losses, weight = sum of token weights."""
    batch_size, slots = batch.weight_BS.shape
    groups = token_loss_WU.shape[0]
    rows = jnp.arange(groups)[:, None]
    zeros = jnp.zeros((groups, batch_size * slots // groups), jnp.float32)
    weight = zeros.at[rows, targets.sample_WU].add(targets.weight_WU)
    total = zeros.at[rows, targets.sample_WU].add(token_loss_WU * targets.weight_WU)
    value = jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)
    return Loss(value.reshape(batch_size, slots), weight.reshape(batch_size, slots))
