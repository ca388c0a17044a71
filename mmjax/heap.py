"""Old name of `mmjax.processes.heap`."""

import mmjax

mmjax.moved(__name__, "mmjax.processes.heap")
