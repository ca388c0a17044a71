"""The config of a run whose parts are those of a package."""

from my_package import Count, Pairs, RunningMean, Text

import mmjax
from mmjax.data.layouts import Aligned
from mmjax.experiment import Checkpointing, Logging
from mmjax.models import Block, Run, Transformer
from mmjax.objectives import InfoNCE
from mmjax.optim import AdamW


def get_config():
    return mmjax.Experiment(
        modalities={"one": Text(), "other": Text()},
        model=Transformer(
            shape="encoder",
            width=16,
            num_heads=2,
            moe=None,
            runs=(Run(pattern=(Block(), RunningMean())),),
        ),
        tasks={
            "pair": mmjax.Task(
                source=Pairs(),
                inputs=("one", "other"),
                layout=Aligned(),
                objective=InfoNCE(),
                batch_size=16,
                group_rows=2,
            )
        },
        optimizer=AdamW(),
        evaluators={"count": Count()},
        checkpoint=Checkpointing(every=2),
        logging=Logging(log_every=1),
        total_steps=2,
    )
