"""Old name of `mmjax.cli.doctor`."""

import mmjax

mmjax.moved(__name__, "mmjax.cli.doctor")
