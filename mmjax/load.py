"""Public name of `mmjax.run.load`."""

import mmjax

mmjax.moved(__name__, "mmjax.run.load", for_good=True)
