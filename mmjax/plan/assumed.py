"""Modalities whose tokenizers are not trained yet: what a plan takes them to be."""

from __future__ import annotations

import dataclasses

from mmjax import files
from mmjax.experiment import Experiment
from mmjax.modalities.codes import Codes
from mmjax.modalities.modality import Modality
from mmjax.tokenizers.learned import MANIFEST
from mmjax.typing import TokenSpec

NUM_IDS = 8192  # of a tokenizer that is not trained yet; 4M has 4,096 to 16,384


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Assumed(Modality):
    """A modality of which nothing but the stream is known."""

    stream: TokenSpec

    def spec(self, name: str) -> TokenSpec:
        """The stream."""
        return dataclasses.replace(self.stream, name=name)


def ready(experiment: Experiment) -> tuple[Experiment, tuple[str, ...]]:
    """An experiment whose streams are all known, and what was assumed of them, in words."""
    from etils import epath

    made, said = dict(experiment.modalities), []
    for name, modality in experiment.modalities.items():
        if not isinstance(modality, Codes):
            continue
        folder = epath.Path(modality.path or ".") / "tokenizer"
        if modality.path and files.exists(folder / MANIFEST):
            made[name] = modality.fit(lambda: (), folder)  # it is there: nothing is copied
            continue
        made[name] = _Assumed(stream=_like(modality, name))
        grid = made[name].spec(name).grid
        said.append(
            f"{name}: the tokenizer of {modality.path or 'no path'} is not trained; assumed"
            f" {NUM_IDS:,} ids on a grid of {' x '.join(map(str, grid or ()))}"
        )
    return dataclasses.replace(experiment, modalities=made), tuple(said)


def _like(modality: Codes, name: str) -> TokenSpec:
    """A code for each piece of what it encodes."""
    base = modality.base.spec(name)
    return TokenSpec(
        name=name, kind="grid", max_tokens=base.max_tokens, vocab_size=NUM_IDS, grid=base.grid
    )
