"""Old name of `mmjax.run.executables`."""

import mmjax

mmjax.moved(__name__, "mmjax.run.executables")
