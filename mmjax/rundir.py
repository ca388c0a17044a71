"""Old name of `mmjax.run.workdir`."""

import mmjax

mmjax.moved(__name__, "mmjax.run.workdir")
