"""FlowMatching: the loss of a `FlowDecoder`."""

from __future__ import annotations

import dataclasses

from etils import epy

from mmjax.objectives import coded, objective
from mmjax.typing import Loss

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatching(objective.Objective):
    """Error of the velocities of an `Autoencoder`'s flow, which decodes codes that stay.

    Rectified flow (Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003):

        x_t = (1 - t) noise + t value,   t uniform in 0..1, a sample
        loss = mean over samples and values of (velocity(x_t, t, codes) - (value - noise))^2

    Its task has one input, the layout `Aligned` and `trainable=("flow/**",)`, in a run whose `init`
    is the run that made the codes: encoder, codebook and first decoder stay as they are.

    >>> from collections import namedtuple
    >>> from types import SimpleNamespace as Stub
    >>> import jax, jax.numpy as jnp
    >>> value_BJP = jnp.ones((1, 1, 2))
    >>> encoded = Stub(x_BLD=jnp.zeros((1, 1, 3)), captured={"given": value_BJP})
    >>> model = Stub(encode=lambda view: encoded)
    >>> model.velocity = lambda x_BJP, time_B, _: (value_BJP - x_BJP) / (1 - time_B[:, None, None])
    >>> view = namedtuple("View", "stream_BL")(jnp.ones((1, 1)))
    >>> batch = Stub(views={"image": view}, weight_BS=jnp.ones((1, 1)))
    >>> losses, _, _ = FlowMatching().losses(model, {}, batch, jax.random.key(0), {})
    >>> float(losses["flow"].value_BS[0, 0]) < 1e-9  # all that is left of the way, in the time left
    True
    """

    @property
    def parts(self):
        return ("flow",)

    def check(self, task, specs, lanes):
        coded.check("FlowMatching", "flow", task, specs, lanes)

    def losses(self, model, features, batch, key, extra):
        view, weight_B1 = coded.weighed(batch)
        encoded = model.encode(view)  # without a key: no codebook is left out
        vector_BLD = jax.lax.stop_gradient(encoded.x_BLD)
        value_BJP = encoded.captured["given"].astype(jnp.float32)
        first, second = jax.random.split(key)
        noise_BJP = jax.random.normal(first, value_BJP.shape)
        time_B = jax.random.uniform(second, value_BJP.shape[:1])
        share = time_B[:, None, None]
        x_BJP = (1 - share) * noise_BJP + share * value_BJP
        wrong = model.velocity(x_BJP, time_B, vector_BLD) - (value_BJP - noise_BJP)
        error_B1 = jnp.mean(jnp.square(wrong), axis=(1, 2))[:, None]
        # No record: the codebook follows the steps that train the encoder.
        return {"flow": Loss(error_B1, weight_B1)}, {}, {}
