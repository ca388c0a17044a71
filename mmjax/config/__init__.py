"""Configs are Python: load `file.py:function`, override fields, write to JSON and read back.

A config is a tree of frozen dataclasses, dicts by name and tuples. Nothing here imports jax or
another part of mmjax, so that a mistyped field is reported at once.
"""

from mmjax.config.classes import modules_of, seam_classes
from mmjax.config.compare import diff, identity, paths
from mmjax.config.error import ConfigError, nearest
from mmjax.config.files import load
from mmjax.config.modules import load_module
from mmjax.config.names import short_names
from mmjax.config.overrides import override
from mmjax.config.serial import FORMAT, dump, fingerprint, from_json, to_json

__all__ = [
    "FORMAT",
    "ConfigError",
    "diff",
    "dump",
    "fingerprint",
    "from_json",
    "identity",
    "load",
    "load_module",
    "modules_of",
    "nearest",
    "override",
    "paths",
    "seam_classes",
    "short_names",
    "to_json",
]
