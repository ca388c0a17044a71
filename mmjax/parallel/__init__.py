"""Meshes and sharding rules."""

from mmjax.parallel.mesh import MeshConfig
from mmjax.parallel.rules import MeshRules

__all__ = ["MeshConfig", "MeshRules"]
