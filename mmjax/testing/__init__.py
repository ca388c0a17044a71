"""The contracts of the seams, run on a part of yours: what the tests of mmjax ask of its own.

    from mmjax import testing

    def test_contract():
        testing.check_modality(Thermal(), values=[np.zeros((16, 16))], bad=[np.zeros(3)])

Each check takes the part and a few values, runs on whatever devices there are, and raises `Broken`,
an AssertionError that names class, method and rule.
"""

from mmjax.testing.data import (
    check_augment,
    check_layout,
    check_modality,
    check_schedule,
    check_source,
    check_tokenizer,
)
from mmjax.testing.model import (
    check_block,
    check_evaluator,
    check_head,
    check_objective,
    check_router,
    check_rule,
    check_stem,
)
from mmjax.testing.require import Broken

__all__ = [
    "Broken",
    "check_augment",
    "check_block",
    "check_evaluator",
    "check_head",
    "check_layout",
    "check_modality",
    "check_objective",
    "check_router",
    "check_rule",
    "check_schedule",
    "check_source",
    "check_stem",
    "check_tokenizer",
]
