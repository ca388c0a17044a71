"""Old name of `mmjax.cli.data_check`."""

import mmjax

mmjax.moved(__name__, "mmjax.cli.data_check")
