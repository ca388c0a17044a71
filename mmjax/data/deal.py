"""Old name of `mmjax.data.schedules`."""

import mmjax

mmjax.moved(__name__, "mmjax.data.schedules")
