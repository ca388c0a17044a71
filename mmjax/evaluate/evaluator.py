"""Old name of `mmjax.experiment`."""

import mmjax

mmjax.moved(__name__, "mmjax.experiment")
