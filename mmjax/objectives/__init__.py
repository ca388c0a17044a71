"""What steps minimise."""

from mmjax.objectives.contrastive import Contrastive, InfoNCE, Sigmoid
from mmjax.objectives.generative import Masked, NextToken
from mmjax.objectives.objective import Extra, Objective

__all__ = ["Contrastive", "Extra", "InfoNCE", "Masked", "NextToken", "Objective", "Sigmoid"]
