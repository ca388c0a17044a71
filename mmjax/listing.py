"""Old name of `mmjax.cli.listing`."""

import mmjax

mmjax.moved(__name__, "mmjax.cli.listing")
