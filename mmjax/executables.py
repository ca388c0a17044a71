"""Old name of `mmjax.run.program`."""

import mmjax

mmjax.moved(__name__, "mmjax.run.program")
