"""Old name of `mmjax.run.metrics`."""

import mmjax

mmjax.moved(__name__, "mmjax.run.metrics")
