"""Routers under alternation, where streams conflict: the same inputs, other answers in each stream.

    python benchmarks/routers.py [--steps 1500] [--seeds 3] [--rows 64] [--arms dense ...]
        [--out FILE]

Sixteen streams share one vocabulary of 16 ids and so their input vectors. A row is eight random
ids; its label is the class with the largest sum of T_m[id, class] over the row, where the table T_m
is of the stream m, drawn at random: the same rows, other labels. A step shows one stream, the next
step the next one. The arms have equal FLOPs a token (but for the router: 5 %) and equal learning
rates:

    dense          feed-forwards of width 64
    token_choice   16 experts of width 32, a token takes two; `TokenChoice`, the default
    softmax_top_k  the same, balanced within a batch by a loss (`SoftmaxTopK`)
    expert_choice  16 experts of width 64, each takes a sixteenth of the tokens of a group
    by_stream      16 experts of width 64, one a stream, given and not learned: what is to be had

The score is the share of rows never seen whose label is right, chance about 1/16. Loads are of the
last 20 % of the steps, in fair shares.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from mmjax import step as step_lib
from mmjax.models import ByStream, ExpertChoice, MoE, SoftmaxTopK, TokenChoice, Transformer, plan
from mmjax.objectives import MaskedTokens
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig, MeshRules
from mmjax.run import experts
from mmjax.typing import Batch, OneSegment, Targets, Tokens, TokenSpec, Vocabulary, positions

STREAMS, IDS, CLASSES, LENGTH, WIDTH, INNER, EXPERTS = 16, 16, 16, 8, 32, 64, 16
LAYERS, GROUP_ROWS = 2, 8
ARMS = {
    "dense": None,
    "token_choice": MoE(num_experts=EXPERTS, every=1, router=TokenChoice()),
    "softmax_top_k": MoE(num_experts=EXPERTS, every=1, router=SoftmaxTopK()),
    "expert_choice": MoE(
        num_experts=EXPERTS, every=1, width=INNER, router=ExpertChoice(allow_unmixed=True)
    ),
    "by_stream": MoE(
        num_experts=EXPERTS, every=1, width=INNER,
        router=ByStream(experts=(*range(STREAMS), 0)),  # the last is that of the labels
    ),
}  # fmt: skip
SPECS = (
    *(
        TokenSpec(name=f"s{m}", kind="sequence", max_tokens=LENGTH, vocab_size=IDS, text=True)
        for m in range(STREAMS)
    ),
    TokenSpec(name="label", kind="sequence", max_tokens=LENGTH, vocab_size=CLASSES),
)
VOCABULARY = Vocabulary(SPECS)


def model(arm: str) -> Transformer:
    """Two layers of width 32."""
    return Transformer(
        shape="encoder", width=WIDTH, num_heads=2, encoder_layers=LAYERS, mlp_width=INNER,
        moe=ARMS[arm],
    )  # fmt: skip


def batch_of(stream: int, ids_BL: np.ndarray, table_MVC: np.ndarray) -> Batch:
    """Rows of one stream; each of their tokens is to say the label of the row."""
    rows, length = ids_BL.shape
    label_BL = np.repeat(table_MVC[stream][ids_BL].sum(1).argmax(-1)[:, None], length, 1)
    groups = rows // GROUP_ROWS
    name, ones = SPECS[stream].name, np.ones((rows, length), np.int32)
    view = Tokens(
        ids_BL=(ids_BL + VOCABULARY.range(name)[0]).astype(np.int32),
        stream_BL=VOCABULARY.number(name) * ones,
        segment_BL=ones,
        order_BL=0 * ones,
        position_BLA=np.repeat(positions(length)[None], rows, 0),
        rule=OneSegment(),
    )
    row, slot = np.divmod(np.arange(GROUP_ROWS * length, dtype=np.int32), np.int32(length))
    tile = lambda x: np.tile(x, (groups, 1))
    targets = Targets(
        row_WU=tile(row), slot_WU=tile(slot), sample_WU=tile(row),
        weight_WU=np.ones((groups, GROUP_ROWS * length), np.float32),
        label_WU=label_BL.reshape(groups, -1).astype(np.int32),
    )  # fmt: skip
    return Batch(
        views={"input": view},
        targets={"label": targets},
        present_BSM=np.ones((rows, 1, len(SPECS)), bool),
        identity_BS=np.arange(rows, dtype=np.int32)[:, None],
        sample_BSI=np.zeros((rows, 1, 2), np.uint32),
        weight_BS=np.ones((rows, 1), np.float32),
    )


def run(arm: str, seed: int, steps: int, rows: int) -> dict[str, float]:
    """Trains one arm; its score, its loads and its seconds."""
    config, objective = model(arm), MaskedTokens()
    heads = objective.heads((), SPECS[-1:])
    parts = step_lib.split(functools.partial(config.make, VOCABULARY, heads, seed))
    mesh = MeshConfig().make(jax.devices()[:1])
    tx = AdamW(learning_rate=5e-3, weight_decay=0.0).make(parts.matrices, steps)
    shardings = step_lib.state_shardings(parts, tx, {}, mesh, MeshRules())
    state = step_lib.init_state(parts, tx, {}, shardings)
    step = step_lib.make_train_step(
        parts, tx, objective, shardings, seed=0, group_rows=GROUP_ROWS, grad_clip_norm=1.0,
        update_state=config.update_state,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    table_MVC = rng.normal(size=(STREAMS, IDS, CLASSES))
    loads: dict[str, np.ndarray] = {}
    with jax.set_mesh(mesh):
        began = time.process_time()
        for i in range(steps):
            ids_BL = rng.integers(0, IDS, (rows, LENGTH))
            state, out = step(state, batch_of(i % STREAMS, ids_BL, table_MVC))
            if i >= 0.8 * steps:
                record = {n: np.asarray(x) for n, x in out.items() if n.startswith("load/")}
                loads = {n: loads.get(n, 0.0) + x.astype(np.float64) for n, x in record.items()}
        seconds = time.process_time() - began
        score = functools.partial(
            step_lib.eval_step, parts, objective, state.params, state.model_state, {},
            group_rows=GROUP_ROWS,
        )  # fmt: skip
        score, found = jax.jit(score), []
        for m in range(STREAMS):
            ids_BL = rng.integers(0, IDS, (512, LENGTH))
            _, metrics, _ = score(batch_of(m, ids_BL, table_MVC))
            found.append(float(metrics["label/accuracy"]))
    layers = [
        experts.Layer(number=n, where="", load_ME=load_ME[1:])
        for n, load_ME in enumerate(x for load_NME in loads.values() for x in load_NME)
    ]
    rows_of = [row for layer in layers for row in layer.load_ME if row.sum()]
    return {
        "score": statistics.mean(found),
        "load_max": max((float(x.share_E.max()) for x in layers), default=1.0),
        "load_min": min((float(x.share_E.min()) for x in layers), default=1.0),
        "stream_load_max": statistics.mean(
            float(experts.shares(row).max()) for row in rows_of
        ) if rows_of else 1.0,
        "cpu_seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Routers, where streams conflict.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64, help="of a batch; a multiple of 8")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", default="", help="file for the figures, JSON")
    args = parser.parse_args()
    found: dict[str, dict] = {}
    for arm in args.arms:
        runs = [run(arm, seed, args.steps, args.rows) for seed in range(args.seeds)]
        flops = plan.flops_per_token(model(arm), "main", LENGTH)
        found[arm] = {"flops_per_token": flops, "runs": runs}
        score = [x["score"] for x in runs]
        low, high = min(x["load_min"] for x in runs), max(x["load_max"] for x in runs)
        own = statistics.mean(x["stream_load_max"] for x in runs)
        print(
            f"{arm:14} score {statistics.mean(score):.3f} ({', '.join(f'{x:.3f}' for x in score)})"
            f"  FLOPs {flops:,.0f}  loads {low:.2f} to {high:.2f}, busiest of a stream {own:.2f}"
            f"  {statistics.mean(x['cpu_seconds'] for x in runs):.0f} s",
            flush=True,
        )
    if args.out:
        Path(args.out).write_text(json.dumps({"arguments": vars(args), "arms": found}, indent=1))


if __name__ == "__main__":
    main()
