"""One transformer, its routers and its heads. Importing this imports no jax."""

from mmjax.models.autoencoder import Autoencoder
from mmjax.models.block import BlockConfig
from mmjax.models.config import ModelConfig
from mmjax.models.embed import Classify, Head, Projection, Scale, ValueHead, VocabularyHead
from mmjax.models.layers import Adapter, GatedCrossAttention, LoRA, Queries
from mmjax.models.plan import Block, MoE, Run, Transformer
from mmjax.models.quantizer import FSQ, VQ, Quantizer
from mmjax.models.routers import (
    ByStream,
    ExpertChoice,
    Router,
    Soft,
    SoftmaxTopK,
    TokenChoice,
)
from mmjax.models.stems import Convolutions, Patches, Stem

__all__ = [
    "FSQ",
    "VQ",
    "Adapter",
    "Autoencoder",
    "Block",
    "BlockConfig",
    "ByStream",
    "Classify",
    "Convolutions",
    "ExpertChoice",
    "GatedCrossAttention",
    "Head",
    "LoRA",
    "MoE",
    "ModelConfig",
    "Patches",
    "Projection",
    "Quantizer",
    "Queries",
    "Router",
    "Run",
    "Scale",
    "Soft",
    "SoftmaxTopK",
    "Stem",
    "TokenChoice",
    "Transformer",
    "ValueHead",
    "VocabularyHead",
]  # fmt: skip
