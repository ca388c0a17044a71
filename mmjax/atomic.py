"""Old name of `mmjax.files.replacing`."""

from mmjax.files import replacing

__all__ = ["replacing"]
