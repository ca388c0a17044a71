"""An augmentation of one's own: bright pixels are turned into their negatives, at random."""

import dataclasses

import numpy as np

from mmjax.data.augment import Augment, check_kind
from mmjax.modalities.image import Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solarize(Augment):
    """Pixels above a random threshold become 1 minus themselves.

    Fields:
      low: smallest threshold.
    """

    low: float = 0.5

    def check(self, name, task, modalities):
        check_kind(self, name, modalities[name], Image)

    def prepare(self, value, modality):
        return modality.decode(modality.encode(value))

    def __call__(self, value, modality, rng):
        threshold = rng.uniform(self.low, 1)
        return modality.encode(np.where(value > threshold, 1 - value, value))
