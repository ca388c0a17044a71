"""CLIP and 4M as one writes them in JAX at first, at the shapes of the anchors (anchor.py).

Layers stacked and scanned, layer norms, dense layers, optax: the plain JAX of PERFORMANCE B1 and
B2, written anew from what is said there, as its figures hold for another machine.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

WIDTH, HEADS, LAYERS = 256, 8, 4
STREAMS = (196, 196, 64)  # tokens of each stream of 4M; 128 of all are visible, 128 are targets
TAKEN = (48, 48, 32)


def normal(key, *shape):
    """Weights of standard deviation 0.02."""
    return jax.random.normal(key, shape) * 0.02


def new_norm(*lead):
    """Scale and bias."""
    return {"scale": jnp.ones((*lead, WIDTH)), "bias": jnp.zeros((*lead, WIDTH))}


def norm(x, p):
    """Layer norm."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * p["scale"] + p["bias"]


def new_blocks(key, gated, cross=False):
    """Stacked layers of a tower, an encoder or a decoder."""
    sizes = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH)}
    wide = 682 if gated else 4 * WIDTH
    sizes |= {"up": (WIDTH, wide), "down": (wide, WIDTH)} | (
        {"gate": (WIDTH, wide)} if gated else {}
    )
    if cross:
        sizes |= {"cross_q": (WIDTH, WIDTH), "cross_kv": (WIDTH, 2 * WIDTH)}
        sizes |= {"cross_out": (WIDTH, WIDTH)}
    keys = jax.random.split(key, len(sizes))
    weights = {n: normal(k, LAYERS, *s) for k, (n, s) in zip(keys, sizes.items(), strict=True)}
    norms = ("norm1", "norm2", *(("cross_norm", "memory_norm") if cross else ()))
    return weights | {name: new_norm(LAYERS) for name in norms}


def attend(q, k, v, mask=None):
    """Attention of HEADS heads; `mask` is [B or 1, 1, N, M]."""
    split = lambda x: x.reshape(*x.shape[:2], HEADS, -1)
    logits = jnp.einsum("bnhd,bmhd->bhnm", split(q), split(k)) * (WIDTH // HEADS) ** -0.5
    logits = logits if mask is None else jnp.where(mask, logits, -1e30)
    out = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), split(v))
    return out.reshape(q.shape)


def run(blocks, x, mask=None, memory=None):
    """All layers."""

    def layer(x, p):
        x = x + attend(*jnp.split(norm(x, p["norm1"]) @ p["qkv"], 3, -1), mask) @ p["out"]
        if memory is not None:
            keys, values = jnp.split(norm(memory, p["memory_norm"]) @ p["cross_kv"], 2, -1)
            y = norm(x, p["cross_norm"]) @ p["cross_q"]
            x = x + attend(y, keys, values) @ p["cross_out"]
        y = norm(x, p["norm2"])
        inner = jax.nn.silu(y @ p["gate"]) * (y @ p["up"]) if "gate" in p else None
        return x + (jax.nn.gelu(y @ p["up"]) if inner is None else inner) @ p["down"], None

    return jax.lax.scan(layer, x, blocks)[0]


def clip(rows):
    """(loss, parameters, batch) of 64 patches and 32 tokens a pair."""
    rng, key = np.random.default_rng(0), iter(jax.random.split(jax.random.key(0), 8))
    params = {"image": new_blocks(next(key), False), "text": new_blocks(next(key), False)}
    params |= {"patches": normal(next(key), 192, WIDTH), "table": normal(next(key), 4096, WIDTH)}
    params |= {"places": normal(next(key), 96, WIDTH), "ends": new_norm(2)}
    params |= {"project": normal(next(key), 2, WIDTH, WIDTH), "scale": jnp.array(2.66)}
    batch = {
        "image": rng.normal(size=(rows, 64, 192)).astype(np.float32),
        "ids": rng.integers(3, 4095, (rows, 32)),
    }

    def loss(p, batch):
        image = batch["image"] @ p["patches"] + p["places"][:64]
        text = p["table"][batch["ids"]] + p["places"][64:]
        causal = jnp.tril(jnp.ones((32, 32), bool))
        ends = [jax.tree.map(lambda x, i=i: x[i], p["ends"]) for i in (0, 1)]
        image = norm(run(p["image"], image), ends[0]).mean(1) @ p["project"][0]
        text = norm(run(p["text"], text, causal), ends[1])[:, -1] @ p["project"][1]
        image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
        logits, label = jnp.exp(p["scale"]) * image @ text.T, jnp.arange(rows)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return (entropy(logits, label).mean() + entropy(logits.T, label).mean()) / 2

    return loss, params, batch


def fourm(rows):
    """(loss, parameters, batch): tokens are chosen inside the step, each stream has its head."""
    rng, key = np.random.default_rng(0), iter(jax.random.split(jax.random.key(0), 9))
    params = {"encoder": new_blocks(next(key), True), "decoder": new_blocks(next(key), True, True)}
    params |= {
        "table": normal(next(key), 3, 4096, WIDTH),
        "head": normal(next(key), 3, WIDTH, 4096),
    }
    params |= {"stream": normal(next(key), 2, 3, WIDTH), "mask": normal(next(key), WIDTH)}
    params |= {"context": normal(next(key), WIDTH, WIDTH), "ends": new_norm(2)}
    places, stream = normal(next(key), sum(STREAMS), WIDTH), np.repeat(np.arange(3), STREAMS)
    noise = rng.random((rows, sum(STREAMS)))
    chosen = [np.argsort(x, 1) for x in np.split(noise, np.cumsum(STREAMS)[:-1], 1)]
    cuts = np.cumsum(TAKEN)[:-1]
    starts = np.cumsum((0, *STREAMS[:-1]))
    split = [
        s + x[:, : 2 * n].reshape(rows, 2, n) for s, x, n in zip(starts, chosen, TAKEN, strict=True)
    ]
    seen, hidden = np.concatenate(split, 2).swapaxes(0, 1)
    batch = {"ids": rng.integers(4, 4096, noise.shape), "seen": seen, "hidden": hidden}

    def loss(p, batch):
        seen, hidden = batch["seen"], batch["hidden"]
        of, to = jnp.asarray(stream)[seen], jnp.asarray(stream)[hidden]
        ends = [jax.tree.map(lambda x, i=i: x[i], p["ends"]) for i in (0, 1)]
        where = places[seen] + p["stream"][0][of]
        x = p["table"][of, jnp.take_along_axis(batch["ids"], seen, 1)] + where
        memory = norm(run(p["encoder"], x), ends[0]) @ p["context"] + where
        y = p["mask"] + p["stream"][1][to] + places[hidden]
        same = to[:, None, :, None] == to[:, None, None, :]
        y = norm(run(p["decoder"], y, same, memory), ends[1])
        label = jnp.take_along_axis(batch["ids"], hidden, 1)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        parts = zip(jnp.split(y, cuts, 1), p["head"], jnp.split(label, cuts, 1), strict=True)
        return sum(entropy(y @ head, label).mean() for y, head, label in parts) / 3

    return loss, params, batch


def make(name):
    """A compiled step (state, batch) -> (state, loss), its first state and a batch."""
    kind, rows = name.split("_")
    loss, params, batch = {"clip": clip, "fourm": fourm}[kind](int(rows))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b2=0.95))

    def step(state, batch):
        params, moments = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    state, batch = (params, tx.init(params)), jax.device_put(batch)
    return jax.jit(step, donate_argnums=0).lower(state, batch).compile(), state, batch
