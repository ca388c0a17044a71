"""Public name of `mmjax.run.checkpoint`."""

import mmjax

mmjax.moved(__name__, "mmjax.run.checkpoint", for_good=True)
