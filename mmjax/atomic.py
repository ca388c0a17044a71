"""Old name of `mmjax.files`."""

import mmjax

mmjax.moved(__name__, "mmjax.files")
