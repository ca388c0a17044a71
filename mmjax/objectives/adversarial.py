"""The adversarial loss of a tokenizer: the critic's side, and the term of the autoencoder."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epy

from mmjax.objectives import coded, objective
from mmjax.typing import Array, Loss

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversary(objective.Objective):
    """Hinges of the critic of an `Autoencoder`, which tells given values from decoded ones.

    As in VQGAN (Esser et al. 2021, arXiv 2012.09841):

        loss = mean over samples and patches of (relu(1 - D(given)) + relu(1 + D(decoded))) / 2

    which is 1 for a critic that knows nothing. Its task has the input of the task of
    `Reconstruction(adversarial=...)`, the layout `Aligned` and `trainable=("critic/**",)`; the two
    alternate as any tasks do. The metric `accuracy` is the share of patches on the right side of 0;
    0.5 is chance.

    >>> from collections import namedtuple
    >>> from types import SimpleNamespace as Stub
    >>> import jax.numpy as jnp
    >>> encoded = Stub(captured={"given": jnp.ones((1, 1, 2))})
    >>> decoded = Stub(x_BLD=jnp.zeros((1, 1, 2)))
    >>> model = Stub(encode=lambda *a, key: encoded, decode=lambda *a, key: decoded)
    >>> model.judge = lambda value_BJP: value_BJP[:, 0] - 0.5  # 0.5 of given, -0.5 of decoded
    >>> view = namedtuple("View", "stream_BL")(jnp.ones((1, 1)))
    >>> batch = Stub(views={"image": view}, weight_BS=jnp.ones((1, 1)))
    >>> losses, metrics, _ = Adversary().losses(model, {}, batch, None, {})
    >>> float(losses["critic"].value_BS[0, 0]), float(metrics["accuracy"])
    (0.5, 1.0)
    """

    @property
    def parts(self):
        return ("critic",)

    def check(self, task, specs, lanes):
        coded.check("Adversary", "critic", task, specs, lanes)

    def losses(self, model, features, batch, key, extra):
        view, weight_B1 = coded.weighed(batch)
        encoded = model.encode(view, key=key)
        decoded = jax.lax.stop_gradient(model.decode(view, encoded, key=key).x_BLD)
        given_BN = model.judge(encoded.captured["given"].astype(decoded.dtype))
        decoded_BN = model.judge(decoded)
        hinge_BN = (jax.nn.relu(1 - given_BN) + jax.nn.relu(1 + decoded_BN)) / 2
        is_right_BN = jnp.concatenate([given_BN > 0, decoded_BN < 0], axis=1).astype(jnp.float32)
        right = jnp.sum(jnp.mean(is_right_BN, axis=1, keepdims=True) * weight_B1)
        losses = {"critic": Loss(jnp.mean(hinge_BN, axis=1, keepdims=True), weight_B1)}
        # No record: the codebook follows the steps that train the encoder.
        return losses, {"accuracy": right}, {}


def deception(model: Any, decoded_BJP: Array, weight_B1: Array, scale: float) -> Loss:
    """`scale` times the mean of -D(decoded), through a critic that gets no gradient."""
    logit_BN = model.judge(decoded_BJP, is_fixed=True)
    return Loss(-scale * jnp.mean(logit_BN, axis=1, keepdims=True), weight_B1)
