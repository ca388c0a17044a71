"""Optimizers and gradient rules."""

from mmjax.optim.gradients import GradientRule, PCGrad
from mmjax.optim.optimizer import AdamW, Muon, Optimizer

__all__ = ["AdamW", "GradientRule", "Muon", "Optimizer", "PCGrad"]
