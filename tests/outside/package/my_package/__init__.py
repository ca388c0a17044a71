"""Parts for mmjax: a modality, a source, a block and an evaluator."""

from my_package.layers import RunningMean
from my_package.parts import Count, Pairs, Strength, Text

__all__ = ["Count", "Pairs", "RunningMean", "Strength", "Text"]
