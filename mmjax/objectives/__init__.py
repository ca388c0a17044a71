"""What steps minimise."""

from mmjax.objectives.contrastive import Contrastive, InfoNCE, Sigmoid
from mmjax.objectives.generative import MaskedTokens, NextToken
from mmjax.objectives.objective import Extra, Objective

__all__ = ["Contrastive", "Extra", "InfoNCE", "MaskedTokens", "NextToken", "Objective", "Sigmoid"]
