"""The lower bound itself at the shapes of two dense models with known costs, on one core.

    python benchmarks/anchor.py [--steps 6]

`fourm`: encoder-decoder, width 256, 4 + 4 layers, SwiGLU 682, 128 visible and 128 target tokens of
three vocabularies of 4096. `clip`: two towers of 4 layers, 64 patches against 32 tokens, 32 pairs.
PLAIN_MS is what plain JAX took for them on one core of an AVX512 server, CPU ms a step, when the
bars were set. Another machine is another speed: a product of matrices is timed beside them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import types

from step import bound, cpu_seconds

PLAIN_MS = {"fourm_4": 291.0, "fourm_16": 1130.0, "clip_32": 745.0}


def view(rng, vocabulary, names, lengths, rows, masked=False):
    """All tokens of some streams, one after the other."""
    import numpy as np

    from mmjax.typing import Tokens, Values

    length = sum(lengths)
    stream = np.repeat([vocabulary.number(n) for n in names], lengths).astype(np.int32)
    ids, values, start = np.zeros((rows, length), np.int32), {}, 0
    for name, count in zip(names, lengths, strict=True):
        first, stop = vocabulary.range(name)
        if stop and not masked:
            ids[:, start : start + count] = rng.integers(first, stop, (rows, count))
        elif not stop:
            pieces = rng.normal(size=(rows, count, vocabulary.spec(name).width))
            slot = np.tile(np.arange(start, start + count, dtype=np.int32), (rows, 1))
            values[name] = Values(pieces.astype(np.float32), slot)
        start += count
    place = np.arange(length)
    return Tokens(
        ids_BL=ids,
        stream_BL=np.tile(stream, (rows, 1)),
        segment_BL=np.ones((rows, length), np.int32),
        order_BL=np.tile(place.astype(np.int32), (rows, 1)),
        position_BLA=np.tile(place.astype(np.float32)[None, :, None], (rows, 1, 3)),
        values=values,
    )


def case(name: str):
    """(program, batch) as far as the lower bound looks at them."""
    import jax
    import numpy as np

    from mmjax import step as step_lib
    from mmjax.models import Transformer
    from mmjax.objectives import InfoNCE, MaskedTokens
    from mmjax.optim import AdamW
    from mmjax.parallel import MeshConfig, MeshRules
    from mmjax.typing import Batch, Targets, TokenSpec, Vocabulary

    kind, rows = name.split("_")[0], int(name.split("_")[1])
    rng = np.random.default_rng(0)
    size = {"width": 256, "num_heads": 8, "mlp_width": 682, "moe": None, "encoder_layers": 4}
    ids = {"kind": "sequence", "vocab_size": 4096}
    if kind == "fourm":
        specs = tuple(TokenSpec(name=n, max_tokens=128, **ids) for n in ("a", "b", "c"))
        vocabulary, lengths = Vocabulary(specs), (43, 43, 42)
        model = Transformer(decoder_layers=4, **size)
        heads = MaskedTokens().heads(specs, specs)
        views = {n: view(rng, vocabulary, "abc", lengths, rows, n == "target")
                 for n in ("input", "target")}  # fmt: skip
        targets, start = {}, 0
        for n, count in zip("abc", lengths, strict=True):
            slot = np.tile(np.arange(start, start + count, dtype=np.int32), (rows, 1))
            zero = np.zeros_like(slot)
            label = rng.integers(0, 4096, slot.shape).astype(np.int32)
            weight = np.ones(slot.shape, np.float32)
            targets[n] = Targets(zero, slot, zero, weight, label_WU=label)
            start += count
    else:
        patches = TokenSpec(name="image", kind="grid", max_tokens=64, width=192, grid=(1, 8, 8))
        specs = (patches, TokenSpec(name="text", max_tokens=32, text=True, **ids))
        vocabulary, targets = Vocabulary(specs), {}
        model = Transformer(shape="towers", lanes=("image", "text"), **size)
        heads = InfoNCE().heads(specs, ())
        views = {
            n: view(rng, vocabulary, (n,), (k,), rows) for n, k in (("image", 64), ("text", 32))
        }
    batch = Batch(
        views=views,
        targets=targets,
        present_BSM=np.ones((rows, 1, len(specs)), bool),
        identity_BS=np.arange(rows, dtype=np.int32)[:, None],
        sample_BSI=np.zeros((rows, 1, 2), np.uint32),
        weight_BS=np.ones((rows, 1), np.float32),
    )
    parts = step_lib.split(lambda: model.make(vocabulary, heads, 0))
    nothing = jax.tree.map(lambda m: None, parts.matrices)
    mesh = MeshConfig().make(jax.devices()[:1])
    tx = AdamW().make(parts.matrices, 10)
    shardings = step_lib.state_shardings(parts, tx, {}, mesh, MeshRules())
    built = types.SimpleNamespace(
        experiment=types.SimpleNamespace(model=model, heads=lambda: heads),
        vocabulary=vocabulary,
        parts=types.SimpleNamespace(matrices=nothing),
        init_state=lambda: step_lib.init_state(parts, tx, {}, shardings),
    )
    return built, jax.device_put(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import jax
    import jax.numpy as jnp

    def cost(run, times=args.steps) -> float:
        jax.block_until_ready(run())
        taken = []
        for _ in range(times):
            began = cpu_seconds()
            jax.block_until_ready(run())
            taken.append(cpu_seconds() - began)
        return 1e3 * statistics.median(taken)

    x = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    print(f"1024^3 product: {2 * 1.024**3 / cost(lambda: product(x, x), 20):.3f} TFLOP/s")
    for name, plain in PLAIN_MS.items():
        run, state, flops = bound(*(built := case(name)))
        held = [state]

        def step(run=run, held=held, batch=built[1]):
            held[0], loss = run(held[0], batch)
            return loss

        ms, count = cost(step), sum(x.size for x in jax.tree.leaves(held[0][0]))
        print(f"{name}: {ms:.0f} ms CPU, plain JAX {plain:.0f}, ratio {ms / plain:.2f};"
              f" {count / 1e6:.2f}M parameters, {3 * flops / ms / 1e6:.0f} GFLOP/s")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
