"""Old name of `mmjax.cli.printing`; `visible` and `inline` are of `mmjax.console`."""

import mmjax

mmjax.moved(__name__, "mmjax.cli.printing")
