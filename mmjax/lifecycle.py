"""Old name of `mmjax.errors` and `mmjax.run.lifecycle`."""

import warnings

from mmjax.errors import *  # noqa: F403
from mmjax.run.lifecycle import *  # noqa: F403

warnings.warn(
    "mmjax.lifecycle is now mmjax.errors and mmjax.run.lifecycle; the old name goes with the next"
    " release.",
    DeprecationWarning,
    stacklevel=2,
)
