"""Describes an experiment's encoder as the configuration of a PyTorch model.

Features that the PyTorch model does not support are refused here, by name, before weights are read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.config import ConfigError, names
from mmjax.data.task import Task
from mmjax.experiment import Experiment
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.text import Text
from mmjax.models import embed as embed_lib
from mmjax.models import plan
from mmjax.models.routers import TokenChoice
from mmjax.models.stems import Convolutions, Patches, frames
from mmjax.tokenizers.sentencepiece import SentencePiece
from mmjax.typing import TokenSpec, Vocabulary

__all__ = [
    "contrastive_tasks",
    "exported",
    "known_fields",
    "model_config",
    "preprocessing",
    "table_owner",
]

IMAGE_FIELDS = ("size", "patch", "channels", "mean", "std", "resize")
AUDIO_FIELDS = (
    "sample_rate", "seconds", "num_mels", "window", "hop", "patch_frames", "dynamic_range",
)  # fmt: skip
TRAINING_FIELDS = ("speed_perturbation",)  # augmentation does not apply to embeddings
TEXT_FIELDS = ("tokenizer", "max_tokens")
KNOWN: dict[type[Modality], tuple[str, ...]] = {
    Image: IMAGE_FIELDS,
    Audio: AUDIO_FIELDS,
    Text: TEXT_FIELDS,
}


def contrastive_tasks(experiment: Experiment) -> dict[str, Task]:
    """The task whose objective represents each modality: the last one with it."""
    return {name: task for task in experiment.tasks.values() for name in task.objective.views(task)}


def exported(experiment: Experiment) -> dict[str, str]:
    """Modality -> lane, for all modalities that have a projection.

    Raises ConfigError for a model or modality without a PyTorch counterpart.
    """
    model = experiment.model
    if type(model) is not plan.Transformer:
        raise ConfigError(
            f"export: model {type(model).__name__} has no PyTorch twin; there is Transformer."
        )
    tasks = contrastive_tasks(experiment)
    if not tasks:
        raise ConfigError(
            "export: no task has a contrastive objective, so the encoder has no projections to"
            " embed with; train one (InfoNCE or Sigmoid over two modalities)."
        )
    first = model.lane_names()[0]
    for name, task in tasks.items():
        if not task.objective.is_pooled:
            raise ConfigError(
                f"export: objective {type(task.objective).__name__} of modality {name!r} has a"
                " representation of its own, which has no PyTorch twin; there are those of InfoNCE"
                " and Sigmoid."
            )
    lanes = {name: task.objective.lane(name) or first for name, task in tasks.items()}
    for name in lanes:
        if name in model.frames:
            raise ConfigError(
                f"export: Transformer.frames of modality {name!r} has no PyTorch twin; leave it out"
                " of the contrastive tasks, or train without."
            )
        _check_modality(name, experiment.modalities[name])
        head = model.heads.get(f"project/{name}")
        if head is not None and type(head) is not embed_lib.Projection:
            raise ConfigError(
                f"export: head project/{name} is a {type(head).__name__}; only Projection has a"
                " PyTorch twin."
            )
        if type(model.stem(name)) not in (Convolutions, Patches):
            raise ConfigError(
                f"export: stem {type(model.stem(name)).__name__} of modality {name!r} has no"
                " PyTorch twin; there are Convolutions and Patches."
            )
    for block in (block for lane in lanes.values() for block in _blocks(model, lane)):
        if type(block) is not plan.Block:
            raise ConfigError(
                f"export: block {type(block).__name__} has no PyTorch twin; there is Block."
            )
        if block.moe and block.moe.shared_width:
            raise ConfigError(
                f"export: MoE.shared_width={block.moe.shared_width} has no PyTorch twin; train"
                " without shared experts in the lanes of the contrastive tasks."
            )
        router = block.moe.router if block.moe else TokenChoice()
        if type(router) is not TokenChoice:
            raise ConfigError(
                f"export: router {type(router).__name__} has no PyTorch twin; train with"
                " TokenChoice, or without experts in the lanes of the contrastive tasks."
            )
    return lanes


def _check_modality(name: str, modality: Modality) -> None:
    kind = type(modality)
    if kind not in KNOWN:
        raise ConfigError(
            f"export: modality {name!r} is a {names.short(names.name_of(kind))}, whose"
            f" preprocessing has no PyTorch twin; there is {', '.join(k.__name__ for k in KNOWN)}."
            " Leave it out of the contrastive tasks."
        )
    for field in dataclasses.fields(modality):
        value = getattr(modality, field.name)
        # An unknown field may change what `encode` gives, unless it has its default.
        if field.name not in (*KNOWN[kind], *TRAINING_FIELDS, "field") and value != field.default:
            raise ConfigError(
                f"export: modality {name!r} sets {kind.__name__}.{field.name}={value!r}, which the"
                " exported preprocessing does not know; use its default."
            )
    if isinstance(modality, Text) and type(modality.tokenizer) is not SentencePiece:
        raise ConfigError(
            f"export: modality {name!r} uses tokenizer {type(modality.tokenizer).__name__}; only"
            " SentencePiece has a PyTorch twin."
        )


def known_fields(modality: Modality) -> dict[str, Any]:
    """The fields that the exported preprocessing supports."""
    names = [field.name for field in dataclasses.fields(modality)]
    return {name: getattr(modality, name) for name in names if name in KNOWN[type(modality)]}


def _blocks(model: plan.Transformer, lane: str) -> list[Any]:
    places = plan.block_places(model)
    blocks = {
        number: model.layer_plan()[r].pattern[p]
        for (r, p, _), (where, number) in places.items()
        if where == lane
    }
    return [blocks[number] for number in sorted(blocks)]


def table_owner(vocabulary: Vocabulary, name: str) -> str:
    """The stream that the embedding table of a stream is named after; "" = continuous."""
    where = vocabulary.range(name)
    if not where[1]:
        return ""
    return next(s.name for s in vocabulary.specs if vocabulary.range(s.name)[0] == where[0])


def model_config(experiment: Experiment, widths: dict[str, int]) -> dict[str, Any]:
    """The config.json that `configuration_mmjax.py` reads.

    Args:
      widths: of the embedding of each exported modality.
    """
    model, vocabulary, lanes = experiment.model, experiment.vocabulary(), exported(experiment)
    assert isinstance(model, plan.Transformer)
    streams, tables = {}, {}
    for name, lane in lanes.items():
        spec, owner = vocabulary.spec(name), table_owner(vocabulary, name)
        if owner:
            start, stop = vocabulary.range(owner)
            tables[owner] = stop - start
        streams[name] = {
            "lane": lane,
            "table": owner,
            "piece_width": spec.width,
            "grid": list(spec.grid) if spec.grid else None,
            "projection": widths[name],
            "stem": _stem(model, spec),
        }
    return {
        "model_type": "mmjax",
        "architectures": ["MMJaxModel"],
        "auto_map": {
            "AutoConfig": "configuration_mmjax.MMJaxConfig",
            "AutoModel": "modeling_mmjax.MMJaxModel",
            "AutoProcessor": "processing_mmjax.MMJaxProcessor",
        },
        "dtype": "float32",
        "streams": streams,
        "tables": tables,
        "lanes": {
            lane: [_block(model, block) for block in _blocks(model, lane)]
            for lane in dict.fromkeys(lanes.values())
        },
        "width": model.width,
        "num_heads": model.num_heads,
        "num_kv_heads": model.kv_heads,
        "head_dim": model.head_width,
        "mlp_width": model.ffn_width,
        "norm": model.norm,
        "norm_eps": model.norm_eps,
        "qk_norm": model.qk_norm,
        "position": model.position,
        "max_wavelength": model.max_wavelength,
    }


def _stem(model: plan.Transformer, spec: TokenSpec) -> dict[str, Any] | None:
    """Convolutions before the matrix of pieces; None = there are none."""
    stem = model.stem(spec.name)
    if not isinstance(stem, Convolutions):
        return None
    return {
        "pieces": [*frames(spec), *spec.piece],
        "stages": [stage._asdict() for stage in stem.stages(spec)],
    }


def _block(model: plan.Transformer, block: plan.Block) -> dict[str, int]:
    if block.moe is None:
        return {}
    router = block.moe.router
    assert isinstance(router, TokenChoice)
    return {
        "num_experts": block.moe.num_experts,
        "width": model.expert_width(block.moe),
        "num_experts_per_tok": router.num_experts_per_tok,
    }


def preprocessing(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Stream -> kind and fields of its preprocessing, for `preprocessing_mmjax.make`."""
    described: dict[str, dict[str, Any]] = {}
    for name in exported(experiment):
        modality = experiment.modalities[name]
        if isinstance(modality, Text):
            fields = {
                "max_tokens": modality.max_tokens,
                "end_id": modality.tokenizer.end_id,
                "model_file": f"{name}.sentencepiece.model",
            }
        else:
            fields = known_fields(modality)
        described[name] = {"kind": type(modality).__name__.lower(), **fields}
    return described
