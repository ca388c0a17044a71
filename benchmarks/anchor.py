"""The lower bound itself against plain JAX and published models, on one core.

    python benchmarks/anchor.py [--fourm CHECKOUT] [--rounds 7] [--out FILE]

`clip`: two towers of width 256 and 4 layers, 64 patches against 32 tokens, 32 pairs, against
`transformers.CLIPModel` (needs the extra `hf`). `fourm_4`, `fourm_16`: encoder-decoder of width
256, 4 + 4 layers, SwiGLU 682, 128 visible and 128 target tokens of three vocabularies of 4096,
against a checkout of apple/ml-4m (needs torch and einops too).

PLAIN is what plain JAX reached when the bars were set, on an AMD EPYC: CPU time of the same peer
over its own, on one core. The bound is good when it is within 10 % of that. How torch and XLA
compare depends on the processor, so `plain.py`, plain JAX of the same shapes, runs beside, and the
bound may cost at most 10 % more than it too. All run in turns and ratios are taken inside a round,
so the speed of the machine drops out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import types
from pathlib import Path

from step import bound
from turns import Turns, cpu_seconds, quartiles

PLAIN = {"clip_32": 823 / 745, "fourm_4": 1.47, "fourm_16": 1.30}
SLACK = 1.1


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
    size |= {"qk_norm": False}  # neither peer has it
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


def run_bound(name: str):
    """A step of the bound, and its number of parameters."""
    import jax

    built, batch = case(name)
    run, state, _ = bound(built, batch)
    held = [state]

    def step():
        held[0], loss = run(held[0], batch)
        jax.block_until_ready(loss)

    return step, sum(x.size for x in jax.tree.leaves(state[0]))


def run_plain(name: str):
    """A step of plain JAX, and its number of parameters."""
    import jax
    import plain

    run, state, batch = plain.make(name)
    held = [state]

    def step():
        held[0], loss = run(held[0], batch)
        jax.block_until_ready(loss)

    return step, sum(x.size for x in jax.tree.leaves(state[0]))


def run_clip(rows: int):
    """A step of transformers' CLIP, and its number of parameters."""
    import torch
    import transformers

    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 8, "projection_dim": 256}
    config = transformers.CLIPConfig(
        vision_config=sizes | {"image_size": 64, "patch_size": 8},
        text_config=sizes | {"vocab_size": 4096, "max_position_embeddings": 32},
        projection_dim=256,
    )
    model = transformers.CLIPModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    pixels, ids = torch.randn(rows, 3, 64, 64), torch.randint(3, 4095, (rows, 32))

    def step():
        optimizer.zero_grad()
        loss = model(input_ids=ids, pixel_values=pixels, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step, sum(p.numel() for p in model.parameters())


def run_fourm(rows: int, checkout: str):
    """A step of 4M's own model, and its number of parameters."""
    sys.path.insert(0, checkout)
    # The model alone: what its packages import besides (torchvision) is not needed for a step.
    for name in ("fourm.data", "fourm.utils", "fourm.data.modality_info"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(Path(checkout, *name.split(".")))]
    sys.modules["fourm.data.modality_info"].MODALITY_INFO = {}  # type: ignore[attr-defined]
    import fourm.models.decoder_embeddings as decoders  # type: ignore
    import fourm.models.encoder_embeddings as encoders  # type: ignore
    import torch
    from fourm.models import fm  # type: ignore

    fm.random = types.SimpleNamespace(sample=lambda items, n: list(items))  # it wants a sequence
    grids, inside, outside = ("rgb", "depth"), {}, {}
    info = {"rgb": {"id": 1, "type": "img"}, "depth": {"id": 2, "type": "img"}}
    info["caption"] = {"id": 3, "type": "seq"}
    for name in grids:
        inside[name] = encoders.ImageTokenEncoderEmbedding(4096, patch_size=16, image_size=224)
        outside[name] = decoders.ImageTokenDecoderEmbedding(4096, patch_size=16, image_size=224)
    inside["caption"] = encoders.SequenceEncoderEmbedding(4096, 64)
    outside["caption"] = decoders.SequenceDecoderEmbedding(4096, 64)
    model = fm.FourM(
        inside, outside, info, dim=256, encoder_depth=4, decoder_depth=4, num_heads=8,
        qkv_bias=False, proj_bias=False, mlp_bias=False, act_layer=torch.nn.SiLU, gated_mlp=True,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, betas=(0.9, 0.95))
    batch = {}
    for name, length in (*((n, 196) for n in grids), ("caption", 64)):
        order, count = torch.rand(rows, length).argsort(1), 32 if name == "caption" else 48
        tensor = torch.randint(4, 4096, (rows, length))
        batch[name] = {
            "tensor": tensor if name == "caption" else tensor.reshape(rows, 14, 14),
            "input_mask": ~(order < count),
            "target_mask": ~((order >= count) & (order < 2 * count)),
            "decoder_attention_mask": torch.zeros(rows, length, dtype=torch.int),
        }
        if name == "caption":
            batch[name]["decoder_attention_mask"][:] = 1

    def step():
        optimizer.zero_grad()
        loss, _ = model(batch, num_encoder_tokens=128, num_decoder_tokens=128)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step, sum(p.numel() for p in model.parameters())


def child(contender: str, name: str, checkout: str) -> None:
    """Warms up, says its size, then answers each number on stdin with CPU ms of so many steps."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    kind, rows = name.split("_")[0], int(name.split("_")[1])
    if contender in ("bound", "plain"):
        step, count = run_bound(name) if contender == "bound" else run_plain(name)
    else:
        import torch

        torch.set_num_threads(1)
        step, count = run_clip(rows) if kind == "clip" else run_fourm(rows, checkout)
    for _ in range(2):
        step()
    print(json.dumps(count), flush=True)
    for line in sys.stdin:
        began = cpu_seconds()
        for _ in range(int(line)):
            step()
        print(1e3 * (cpu_seconds() - began) / int(line), flush=True)


def measure(name: str, checkout: str, rounds: int) -> dict:
    """Medians and ratios of a case; a peer only where it is there."""
    peer = importlib.util.find_spec("transformers") if name.startswith("clip") else checkout
    names = ("plain", "bound", *(("peer",) if peer else ()))
    contenders = {c: (c, name, checkout) for c in names}
    turns = Turns(__file__, contenders, compiling=("bound", "plain"))
    rows = turns.run(rounds, lambda r: 2)
    over = lambda a, b: quartiles([x / y for x, y in zip(rows[a], rows[b], strict=True)])
    return {
        "parameters": turns.about,
        "cpu_ms": {c: statistics.median(v) for c, v in rows.items()},
        "bound_over_plain": over("bound", "plain"),
        "peer_over": {c: over("peer", c) for c in ("plain", "bound")} if peer else {},
        "peer_over_plain_there": PLAIN[name],
    }


def is_good(found: dict) -> bool:
    """Whether the bound is within 10 % of plain JAX, here and, by way of the peer, there."""
    here = found["bound_over_plain"][1] <= SLACK
    peer = found["peer_over"]
    return here and (not peer or peer["bound"][1] * SLACK >= found["peer_over_plain_there"])


def describe(name: str, found: dict) -> str:
    """Two lines."""
    cpu, (low, ratio, high) = found["cpu_ms"], found["bound_over_plain"]
    line = (
        f"{name}: plain JAX {cpu['plain']:.0f} ms CPU, bound {cpu['bound']:.0f} ms, ratio"
        f" {ratio:.2f} ({low:.2f} to {high:.2f}; at most {SLACK})"
    )
    if found["peer_over"]:
        plain, own = (found["peer_over"][c][1] for c in ("plain", "bound"))
        there = found["peer_over_plain_there"]
        line += (
            f"\n  peer {cpu['peer']:.0f} ms: {plain:.2f} of plain JAX (there {there:.2f}),"
            f" {own:.2f} of the bound (at least {there / SLACK:.2f}); parameters"
            f" {found['parameters']}"
        )
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fourm", default="", help="folder of apple/ml-4m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return 0
    found, good = {}, True
    for name in PLAIN:
        found[name] = measure(name, args.fourm, args.rounds)
        good &= is_good(found[name])
        print(describe(name, found[name]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    return 0 if good else 3


if __name__ == "__main__":
    sys.exit(main())
