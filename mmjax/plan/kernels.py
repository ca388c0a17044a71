"""Which implementation computes the attention of each block, told without making a program."""

from __future__ import annotations

from mmjax.experiment import Experiment
from mmjax.models import choose
from mmjax.models.plan import Block, Transformer
from mmjax.plan import flops
from mmjax.typing import Batch, General


def attention(
    experiment: Experiment, task: str, batch: Batch, platform: str, dtype: str
) -> dict[str, str]:
    """Lane, or lane and the one that it reads -> name, and why not the one that was asked for.

    Blocks of other packages choose for themselves, and are not here.
    """
    model, found = experiment.model, {}
    if not isinstance(model, Transformer):
        return found

    def say(where: str, asked: choose.Asked) -> None:
        name = choose.chosen(model.attention, platform, asked)
        why = choose.refusal(model.attention, platform, asked) if model.attention != "auto" else ""
        found[where] = f"{name} ({model.attention}: {why})" if why else name

    heads = (model.num_heads, model.kv_heads, model.head_width, dtype)
    for call in flops.calls(experiment, experiment.tasks[task], batch):
        view = batch.views[call.view]
        for block in (b for run in model.layer_plan() for b in run.pattern):
            if not isinstance(block, Block) or block.lane != call.lane:
                continue
            length, rules = call.length, (view.rule, view.rule)
            say(
                call.lane, choose.Asked(length, length, *heads, block.causal, block.isolate, *rules)
            )
            if block.reads and call.reads:
                one = len(call.reads) == 1  # views side by side promise nothing
                other = getattr(batch.views[call.reads[0]], "rule", General())
                rules = (view.rule, other if one else General())
                asked = choose.Asked(length, call.read_length, *heads, False, False, *rules)
                say(f"{call.lane} reads {block.reads}", asked)
    return found
