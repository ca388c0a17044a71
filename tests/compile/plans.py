"""Plans programs with and without the compiler, in a process of its own: `plans.py OUT CHIPS ...`.

Writes OUT/<name>.json: what `mmjax plan` estimates of a program, and what XLA says of it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from mmjax import config
from mmjax.data.layouts import Masked
from mmjax.models import MoE, Transformer
from mmjax.parallel import MeshConfig
from mmjax.plan import compiler, hlo, model, topology

ROOT = Path(__file__).resolve().parents[2]
FSDP = MeshConfig(data=1, fsdp=-1)
PROGRAMS = {  # name -> (experts, remat policy, mesh)
    "dense_none_data": (False, "none", MeshConfig()),
    "dense_none_fsdp": (False, "none", FSDP),
    "dense_full_data": (False, "full", MeshConfig()),
    "dense_full_fsdp": (False, "full", FSDP),
    "experts_none_fsdp": (True, "none", FSDP),
    "experts_full_data": (True, "full", MeshConfig()),
}


def experiment(experts: bool, remat: str, mesh: MeshConfig):
    """Pixels to codes by four layers each way, 64 rows of 256 + 64 tokens."""
    fourm = config.load(str(ROOT / "configs" / "anyany" / "fourm.py:base"))
    names = ("rgb", "tok_semseg")
    layout = Masked(input_tokens=256, target_tokens=64)
    task = dataclasses.replace(
        fourm.tasks["masked"], inputs=names, targets=names[1:], layout=layout, batch_size=64
    )
    small = Transformer(
        width=512,
        num_heads=8,
        encoder_layers=4,
        decoder_layers=4,
        moe=MoE(num_experts=8) if experts else None,
        remat_policy=remat,
    )
    modalities = {name: fourm.modalities[name] for name in names}
    return dataclasses.replace(
        fourm, modalities=modalities, model=small, tasks={"masked": task}, mesh=mesh
    )


def main(out: Path, chips: str, *names: str) -> None:
    where = topology.parse(chips)
    for name in names:
        config, key = experiment(*PROGRAMS[name]), ("masked", "default")
        found = model.estimate(model.trace_all(config, where), config.mesh, key)
        compiled = compiler.compile_steps(config, where, [key])[key]
        said = {
            "estimated": {
                "arguments": found.arguments,
                "bytes": found.hbm_bytes,
                "memory": found.memory,
                "collectives": found.collectives,
                "flops": found.flops,
            },
            "compiled": {
                "arguments": compiled.arguments,
                "bytes": compiled.hbm_bytes,
                "temporaries": compiled.temporaries,
                "seconds": round(compiled.seconds),
                **dataclasses.asdict(hlo.read(compiled.text)),
            },
        }
        (out / f"{name}.json").write_text(json.dumps(said))
        print(name, json.dumps(said), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
