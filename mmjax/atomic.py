"""Old name of `mmjax.files.replacing`."""

import mmjax

mmjax.moved(__name__, "mmjax.files")
