"""Reconstruction: the loss of the autoencoder of a learned tokenizer."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from etils import epy

from mmjax.config import ranges
from mmjax.objectives import adversarial, coded, objective, spectral
from mmjax.typing import Array, Loss, TokenSpec

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

RARE = 0.01  # a code used less than this share of uniform use counts as dead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(objective.Objective):
    """Error of the decoded pieces, plus the commitment of the quantiser (van den Oord et al. 2017).

        loss = mean over samples and values of error(decoded, value) + commitment + spectral

    The task has one input and the layout `Aligned`. Metrics: `usage` (share of codes in use),
    `dead` (number of unused codes), `perplexity` (exp of the entropy of the codes), from the
    quantiser's moving average.

    Fields:
      error: `mse`, `l1`, `smooth_l1` (quadratic within 1), or `bce`, the log-loss of the sign of
        values in -1..1, for masks: softplus(-2 value decoded). Of a stream of ids
        `cross_entropy`, in nats, whose metric `accuracy` is the share of right ones.
      spectral: windows in samples, multiples of 4: of sounds of one channel the distance of spectra
        is a loss of its own, as `objectives/spectral.py` says; () = none.
      spectral_weight: of this loss.
      adversarial: weight of - mean D(decoded), by the critic of the model, which a task of its own
        trains (`Adversary`); 0 = none.

    >>> from collections import namedtuple
    >>> from types import SimpleNamespace as Stub
    >>> import jax.numpy as jnp
    >>> use_K = jnp.array([3.0, 1.0, 0.0, 0.0])  # how often each of four codes was used
    >>> captured = {"commitment": jnp.zeros((1, 1)), "use": use_K, "given": jnp.ones((1, 1, 2))}
    >>> encoded, decoded = Stub(captured=captured, record={}), Stub(x_BLD=jnp.zeros((1, 1, 2)))
    >>> model = Stub(encode=lambda *a, key: encoded, decode=lambda *a, key: decoded)
    >>> view = namedtuple("View", "stream_BL")(jnp.ones((1, 1)))
    >>> batch = Stub(views={"image": view}, weight_BS=jnp.ones((1, 1)))
    >>> losses, metrics, _ = Reconstruction(error="smooth_l1").losses(model, {}, batch, None, {})
    >>> float(losses["reconstruction"].value_BS[0, 0]), float(metrics["dead"])
    (0.5, 2.0)
    """

    error: Literal["mse", "l1", "smooth_l1", "bce", "cross_entropy"] = "mse"
    spectral: tuple[Annotated[int, ranges.Range(4)], ...] = dataclasses.field(
        default=(), metadata={"is_new": True}
    )
    spectral_weight: ranges.NonNegative = dataclasses.field(default=1.0, metadata={"is_new": True})
    adversarial: ranges.NonNegative = dataclasses.field(default=0.0, metadata={"is_new": True})

    def __post_init__(self):
        ranges.check(self)

    @property
    def parts(self):
        return ("critic",) if self.adversarial else ()

    def check(self, task, specs, lanes):
        coded.check_input("Reconstruction", task, lanes)
        (name,) = task.inputs
        if bool(specs[name].vocab_size) != (self.error == "cross_entropy"):
            kind = (
                "ids, whose error is" if specs[name].vocab_size else "numbers, whose error is not"
            )
            raise ValueError(
                f"objective Reconstruction has error={self.error!r}, but stream {name!r} is of"
                f" {kind} 'cross_entropy'."
            )
        self._check_spectral(specs[name])
        if self.adversarial:
            coded.check_numbers("Reconstruction(adversarial=...)", specs[name])

    def _check_spectral(self, spec: TokenSpec) -> None:
        if not self.spectral:
            return
        who = f"objective Reconstruction: spectral={self.spectral}"
        if spec.vocab_size or spec.piece or spec.grid is None or spec.grid[1:] != (1, 1):
            raise ValueError(
                f"{who}, but the pieces of stream {spec.name!r} are no samples along time; leave it"
                " empty, or give a Waveform."
            )
        most = spec.max_tokens * spec.width
        wrong = [window for window in self.spectral if window % 4 or window > most]
        if wrong:
            raise ValueError(
                f"{who} has {wrong[0]}, but a window is a multiple of 4 and no longer than the"
                f" {most} samples of stream {spec.name!r}; use such as 256, 1024."
            )

    def losses(self, model, features, batch, key, extra):
        # What counts for nothing is not there for the codebook either.
        view, weight_B1 = coded.weighed(batch)
        encoded = model.encode(view, key=key)
        decoded = model.decode(view, encoded, key=key).x_BLD
        error, given = self._error(decoded, encoded.captured["given"]), encoded.captured["given"]
        error_B = jnp.mean(error.reshape(len(error), -1), axis=1)
        losses = {"reconstruction": Loss(error_B[:, None], weight_B1)}
        commitment_B = jnp.mean(encoded.captured["commitment"], axis=-1)
        losses["commitment"] = Loss(commitment_B[:, None], weight_B1)
        if self.spectral:
            made, wanted = (x.reshape(len(x), -1) for x in (decoded, given))
            apart_B = spectral.distance(made, wanted, self.spectral)
            losses["spectral"] = Loss(self.spectral_weight * apart_B[:, None], weight_B1)
        if self.adversarial:
            scale = self.adversarial
            losses["adversarial"] = adversarial.deception(model, decoded, weight_B1, scale)
        metrics = code_use(encoded.captured["use"])
        if self.error == "cross_entropy":
            is_right_B = jnp.mean((jnp.argmax(decoded, -1) == given).astype(jnp.float32), axis=1)
            metrics["accuracy"] = jnp.sum(is_right_B[:, None] * weight_B1)
        return losses, metrics, encoded.record

    def _error(self, decoded: Array, value: Array) -> Array:
        if self.error == "cross_entropy":
            log_p = jax.nn.log_softmax(decoded)
            return -jnp.take_along_axis(log_p, jnp.maximum(value, 0)[..., None], axis=-1)
        value = value.astype(jnp.float32)
        if self.error == "bce":
            return jax.nn.softplus(-2 * value * decoded)
        difference = jnp.abs(decoded - value)
        if self.error == "l1":
            return difference
        square = jnp.square(difference)
        if self.error == "mse":
            return square
        return jnp.where(difference < 1, square / 2, difference - 0.5)


def code_use(use_K: Array) -> dict[str, Array]:
    """`usage`, `dead` and `perplexity` of counts of codes, [K] or [Q, K]; the perplexity of several
    codebooks is their geometric mean."""
    use_QK = jnp.asarray(use_K, jnp.float32).reshape(-1, use_K.shape[-1])
    share_QK = use_QK / jnp.maximum(jnp.sum(use_QK, axis=-1, keepdims=True), 1e-9)
    dead = jnp.sum((share_QK < RARE / share_QK.shape[-1]).astype(jnp.float32))
    entropy_Q = -jnp.sum(share_QK * jnp.log(jnp.maximum(share_QK, 1e-12)), axis=-1)
    return {
        "usage": 1 - dead / share_QK.size,
        "dead": dead,
        "perplexity": jnp.exp(jnp.mean(entropy_Q)),
    }
