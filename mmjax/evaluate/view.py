"""Old name of `mmjax.run.view`."""

import mmjax

mmjax.moved(__name__, "mmjax.run.view")
