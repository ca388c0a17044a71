"""The model seam: what the program, the step and checkpoints need to know of any model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmjax.models.embed import Head
from mmjax.typing import PyTree, TokenSpec, Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of all models: a frozen config that makes an NNX module and keeps its state.

    Fields:
      dtype: compute type; "auto" = bfloat16 on accelerators, float32 on CPU.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def check(self, specs: Mapping[str, TokenSpec]) -> None:
        """Raises ValueError for a field that does not suit the streams, by name."""
        del specs

    def check_task(self, task: Any) -> None:
        """Raises ValueError for a task that does not suit the model, which need not name it."""
        del task

    def make(self, vocabulary: Vocabulary, heads: dict[str, Head], seed: int) -> Any:
        """The NNX module with fresh parameters; call it inside jit or `jax.eval_shape`."""
        raise NotImplementedError(f"{type(self).__name__} must define make().")

    @property
    def state_is_learned(self) -> bool:
        """Whether its parameters are worth nothing without the state beside them, as those of an
        encoder without its codebook: what starts from a run takes both."""
        return False

    def update_state(self, model_state: PyTree, record: dict) -> PyTree:
        """State beside the parameters after one optimizer step, from the record of the calls."""
        del record
        return model_state

    def layer_plan(self) -> tuple:
        """Runs of blocks, in order; nothing for a model that is no stack of blocks."""
        return ()

    def lane_names(self) -> tuple[str, ...]:
        """Lanes that an objective may name."""
        return ()

    def canonical_parts(
        self, vocabulary: Vocabulary, heads: Sequence[str], paths: Sequence[str]
    ) -> dict[str, Any]:
        """Canonical name -> `names.Part`, for the parameter paths of its module."""
        del vocabulary, heads
        from mmjax.models import names

        return {path: names.Part(path, None) for path in paths}
