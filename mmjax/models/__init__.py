"""One transformer, its routers and its heads. Importing this imports no jax."""

from mmjax.models.autoencoder import Autoencoder
from mmjax.models.block import BlockConfig
from mmjax.models.config import ModelConfig
from mmjax.models.critic import Critic
from mmjax.models.embed import Classify, Head, Projection, Scale, ValueHead, VocabularyHead
from mmjax.models.flow_decoder import FlowDecoder
from mmjax.models.layers import Adapter, GatedCrossAttention, LoRA, Queries
from mmjax.models.plan import Block, MoE, Run, Transformer
from mmjax.models.quantizer import Quantizer
from mmjax.models.routers import (
    ByStream,
    ExpertChoice,
    Router,
    Soft,
    SoftmaxTopK,
    TokenChoice,
)
from mmjax.models.scalar_quantizers import FSQ, LFQ
from mmjax.models.stems import Convolutions, Patches, Stem
from mmjax.models.vector_quantizers import VQ, ProductVQ, ResidualVQ

__all__ = [
    "FSQ",
    "LFQ",
    "VQ",
    "Adapter",
    "Autoencoder",
    "Block",
    "BlockConfig",
    "ByStream",
    "Classify",
    "Convolutions",
    "Critic",
    "ExpertChoice",
    "FlowDecoder",
    "GatedCrossAttention",
    "Head",
    "LoRA",
    "MoE",
    "ModelConfig",
    "Patches",
    "ProductVQ",
    "Projection",
    "Quantizer",
    "Queries",
    "ResidualVQ",
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
