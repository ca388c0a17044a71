"""The least that a step can cost: the mathematics of the demo, plainly, in jax and optax only.

Parameters have mmjax's tree and batches its arrays, so that `step.py` can compare the losses."""

# fmt: off
import jax
import jax.numpy as jnp
import optax


def row_sum(x):  # as a product: XLA:CPU adds up rows without vectors
    return x @ jnp.ones((x.shape[-1], 1))
def norm(x, p):
    return x if p is None else x * jax.lax.rsqrt(row_sum(x * x) / x.shape[-1] + 1e-6) * p["scale"]
@jax.custom_vjp
def move(x, to, back):  # a permutation: its derivative gathers too
    return sum(x.at[i].get(mode="fill", fill_value=0) for i in to.T)
move.defvjp(lambda x, to, back: (move(x, to, back), (to, back)),
            lambda kept, d: (move(d, *kept[::-1]), None, None))
def swiglu(x, up, gate, down, weight=1.0):
    return (jax.nn.silu(x @ gate) * (x @ up) * weight) @ down
def mixture(x, p, bias, valid, rows=128, k=2):  # the best k experts of each token; their load
    score, num = jax.nn.sigmoid(x @ p["router"]), p["router"].shape[1]
    index = jax.lax.top_k(jax.lax.stop_gradient(score) + bias, k)[1]
    weight = jnp.take_along_axis(score, index, 1)
    weight = jnp.where(valid[:, None], weight / (weight.sum(1, keepdims=True) + 1e-9), 0)
    flat = jnp.where(valid[:, None], index, num).reshape(-1)
    one = (flat[:, None] == jnp.arange(num)).astype(jnp.int32)
    count, blocks = one.sum(0), flat.size // rows + num
    ends = jnp.cumsum(-(-count // rows))
    place = jnp.cumsum(one, 0) - one + (ends + -count // rows) * rows
    slot = jnp.where(flat < num, (one * place).sum(1), blocks * rows)
    choice = jnp.full(blocks * rows + 1, flat.size).at[slot].set(jnp.arange(flat.size))[:-1, None]
    e_N = jnp.minimum((jnp.arange(blocks)[:, None] >= ends).sum(1), num - 1)
    x_N = move(x, choice // k, slot.reshape(-1, k)).reshape(blocks, rows, -1)
    w_N = move(weight.reshape(-1, 1), choice, slot[:, None]).reshape(blocks, rows, 1)
    y = swiglu(x_N, *(p[m][e_N] for m in ("up", "gate", "down")), w_N)
    return move(y.reshape(-1, x.shape[1]), slot.reshape(-1, k), choice // k), count
def flat(x, w):  # in two dims: XLA:CPU would copy x for the derivative of w
    return (x.reshape(-1, len(w)) @ w).reshape(*x.shape[:-1], -1)
def heads(x, w):
    return flat(x, w.reshape(len(w), -1)).reshape(*x.shape[:2], *w.shape[1:]).swapaxes(1, 2)
def attend(p, x, memory, mask):
    q = norm(heads(x, p["query"]), p.get("query_norm"))
    k = norm(heads(memory, p["key"]), p.get("key_norm"))
    logits = jnp.where(mask[:, None], q @ k.swapaxes(2, 3) * q.shape[-1] ** -0.5, -1e30)
    e = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))) * mask[:, None]
    out = (e @ heads(memory, p["value"]) / jnp.maximum(row_sum(e), 1e-30)).swapaxes(1, 2)
    return flat(out.reshape(*x.shape[:2], -1), p["out"].reshape(-1, x.shape[2]))

def lane(params, bias, r, view, names, memory=None, source=None):
    table, half = params["table"], params["table"].shape[1] // 2
    valid, x = view.stream_BL > 0, table[view.ids_BL] * (2 * half) ** 0.5
    x = jnp.where((view.ids_BL > 0)[..., None], x, params["mask"][view.stream_BL - 1])
    for name, v in view.values.items():
        piece = v.value_BJP @ params["pieces"][names["piece/" + name]]
        x = x.at[jnp.arange(len(x))[:, None], v.slot_BJ].set(piece, mode="drop")
    def place(x, view):  # adds streams and positions
        angle = view.position_BLA[..., jnp.arange(half) % 3] * 1e4 ** (-jnp.arange(half) / half)
        x = x + jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        return (x + params["stream"][view.stream_BL - 1]) * (view.stream_BL > 0)[..., None]
    same = lambda a, b: (a[:, :, None] == b[:, None, :]) & valid[:, :, None]
    mask = same(view.segment_BL, view.segment_BL)
    if source is not None:
        memory = place(flat(memory, params["memory"][0]), source)
        seen = same(view.segment_BL, source.segment_BL)
        mask &= view.order_BL[:, None, :] <= view.order_BL[:, :, None]
        mask &= same(view.stream_BL, view.stream_BL)
    def layer(x, pattern):
        load = {}
        for i, p in pattern[0].items():
            y = norm(x, p["norm1"])
            x = x + attend(p["attention"], y, y, mask)
            if source is not None:
                y = norm(memory, p["memory_norm"])
                x = x + attend(p["cross"], norm(x, p["cross_norm"]), y, seen)
            y, w = norm(x, p["norm2"]).reshape(-1, x.shape[-1]), p["mlp"]
            if "router" in w:
                y, load[i] = mixture(y, w, pattern[1][i], valid.reshape(-1))
            else:
                y = swiglu(y, w["up"], w["gate"], w["down"])
            x = x + y.reshape(x.shape)
        return x, load
    xs = (params["runs"][r]["blocks"], bias[r])
    x, load = jax.lax.scan(layer, place(x, view), xs, unroll=len(jax.tree.leaves(xs)[0]) < 3)
    return norm(x, params["final_norms"][r]), {r: load}

def masked(params, bias, batch, names):
    source, target = batch.views["input"], batch.views["target"]
    memory, load = lane(params, bias, 0, source, names)
    x, more = lane(params, bias, 1, target, names, memory, source)
    loss = 0.0
    for name, t in batch.targets.items():
        index = (t.row_WU * x.shape[1] + t.slot_WU)[..., None]
        y = jnp.take_along_axis(x.reshape(len(index), -1, x.shape[-1]), index, 1)
        if t.label_WU is None:
            head = params["heads"][names["value/" + name]]
            each = jnp.mean((y @ head["kernel"] + head["bias"] - t.value_WUP) ** 2, -1)
        else:
            logits = y @ params["table"][slice(*names["ids/" + name])].T
            each = optax.softmax_cross_entropy_with_integer_labels(logits, t.label_WU)
        loss += (each * t.weight_WU).sum() / t.weight_WU.sum() / len(batch.targets)
    return loss, load | more

def contrast(params, bias, batch, names):  # of two views that all samples have
    unit, load = [], {}
    for name, view in batch.views.items():
        r = names.get("run/" + name, 0)
        x, new = lane(params, bias, r, view, names)
        load[r] = jax.tree.map(jnp.add, load[r], new[r]) if r in load else new[r]
        valid = (view.stream_BL > 0)[..., None]
        z = (x * valid).sum(1) / valid.sum(1) @ params["heads"][names["project/" + name]]["kernel"]
        unit.append(z * jax.lax.rsqrt(row_sum(z * z)))
    scale = jnp.minimum(jnp.exp(params["heads"][names["scale"]]["log_scale"]), 100)
    logits = scale * unit[0] @ unit[1].T
    best = jnp.where(batch.identity_BS == batch.identity_BS.T, logits, -1e30)
    sides = [jax.nn.logsumexp(logits, i) - jax.nn.logsumexp(best, i) for i in (0, 1)]
    return 0.5 * (sides[0] + sides[1]).mean(), load

def orthogonal(x):  # Newton-Schulz, one matrix at a time: it stays in the cache
    tall = x.shape[1] > x.shape[2]
    def turn(_, x):
        gram = x @ x.T
        return 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    def one(x):
        y = jax.lax.fori_loop(0, 5, turn, (x.T if tall else x) / jnp.sqrt((x * x).sum()))
        return y.T if tall else y
    return jax.lax.map(one, x) * max(1, x.shape[2] / x.shape[1]) ** 0.5
def optimize(g, p, m, v, n, matrix, rates, b=0.95):  # Muon where a leaf is [N, in, out]
    first = 0.95 if matrix else 0.9
    m = first * m + (1 - first) * g
    u = first * m / (1 - first ** (n + 2)) + (1 - first) * g / (1 - first ** (n + 1))
    if not matrix:
        v = b * v + (1 - b) * g * g
        return p - rates[0] * u / (jnp.sqrt(v / (1 - b ** (n + 1))) + 1e-8), m, v
    u = orthogonal(u.reshape(matrix)).reshape(p.shape)
    return p - rates[1] * (u + 0.05 * p), m, v

def make_step(loss, names, kinds, rates=(1e-3, 1e-2)):
    def step(state, batch):  # state = params, biases, both moments, steps done
        (params, bias, *moments, n), tree = state, jax.tree.structure(state[0])
        (value, load), grads = jax.value_and_grad(loss, has_aux=True)(params, bias, batch, names)
        clip = 1 / jnp.maximum(optax.tree.norm(grads), 1)
        leaves = zip(*map(tree.flatten_up_to, (grads, params, *moments, kinds)), strict=True)
        new = [optimize(g * clip, p, m, v, n, kind, rates) for g, p, m, v, kind in leaves]
        move = lambda b, count: b + 0.001 * jnp.sign(count.mean(-1, keepdims=True) - count)
        bias = bias | {r: jax.tree.map(move, bias[r], count) for r, count in load.items()}
        params, *moments = map(tree.unflatten, zip(*new, strict=True))
        return (params, bias, *moments, n + 1), value
    return jax.jit(step, donate_argnums=0)
