"""Old name of `mmjax.cli.cpu`."""

import mmjax

mmjax.moved(__name__, "mmjax.cli.cpu")
