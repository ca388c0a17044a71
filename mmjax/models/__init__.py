"""One transformer, its routers and its heads. Importing this imports no jax."""

from mmjax.models.embed import Classify, Head, Projection, Scale, ValueHead, VocabularyHead
from mmjax.models.plan import Block, MoE, Run, Transformer
from mmjax.models.routers import ExpertChoice, Router, Soft, TokenChoice

__all__ = [
    "Block", "Classify", "ExpertChoice", "Head", "MoE", "Projection", "Router", "Run", "Scale",
    "Soft", "TokenChoice", "Transformer", "ValueHead", "VocabularyHead",
]  # fmt: skip
