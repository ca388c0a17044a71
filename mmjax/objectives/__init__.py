"""Objectives: the losses that training steps minimise."""

from mmjax.objectives.adversarial import Adversary
from mmjax.objectives.coca import CoCa
from mmjax.objectives.contrastive import Contrastive, InfoNCE, Sigmoid
from mmjax.objectives.flow_matching import FlowMatching
from mmjax.objectives.generative import MaskedTokens, NextToken
from mmjax.objectives.objective import Extra, Objective
from mmjax.objectives.reconstruction import Reconstruction
from mmjax.objectives.symile import Symile

__all__ = [
    "Adversary", "CoCa", "Contrastive", "Extra", "FlowMatching", "InfoNCE", "MaskedTokens",
    "NextToken", "Objective", "Reconstruction", "Sigmoid", "Symile",
]  # fmt: skip
