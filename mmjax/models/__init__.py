"""One transformer, its routers and its heads. Importing this imports no jax."""

from mmjax.models.autoencoder import Autoencoder
from mmjax.models.config import ModelConfig
from mmjax.models.embed import Classify, Head, Projection, Scale, ValueHead, VocabularyHead
from mmjax.models.plan import Block, MoE, Run, Transformer
from mmjax.models.quantizer import FSQ, VQ, Quantizer
from mmjax.models.routers import ExpertChoice, Router, Soft, TokenChoice

__all__ = [
    "FSQ", "VQ", "Autoencoder", "Block", "Classify", "ExpertChoice", "Head", "MoE", "ModelConfig",
    "Projection", "Quantizer", "Router", "Run", "Scale", "Soft", "TokenChoice", "Transformer",
    "ValueHead", "VocabularyHead",
]  # fmt: skip
