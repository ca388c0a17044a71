"""Rays against the solids of ToyWorld: what each pixel sees, and how it looks.

Ray casting in closed form, one ray through the middle of each pixel, all rays at once. Points are
arrays (3, rays) of float64, so that what is told of a surface is exact in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.demo.toyworld_scene import WALL, Body, Camera

__all__ = ["Surface", "cast", "hit", "shade"]

GLOSS = (0.05, 0.6, 0.3)  # by material
SHARP = (8, 16, 64)  # of its highlights
GRAIN = (0.10, 0.0, 0.0)  # of its rings


class Surface(NamedTuple):
    """What the rays of a camera meet. `part`: 0 = wall, 1 = ground, 2.. = bodies."""

    depth: np.ndarray  # (rays,) metres along the axis of the camera
    part: np.ndarray  # (rays,) int
    points: np.ndarray  # (3, rays) in the world
    normals: np.ndarray  # (3, rays) in the world, unit, outward
    rays: np.ndarray  # (3, rays) directions in the world, of depth 1


@functools.lru_cache(maxsize=8)
def _rays(size: int, focal: float) -> np.ndarray:
    """Directions (3, size * size) in the frame of the camera, of depth 1, row by row."""
    place = ((np.arange(size) + 0.5) / size - 0.5) / focal
    rays = np.ones((3, size, size))
    rays[0], rays[1] = place[None, :], place[:, None]
    rays = rays.reshape(3, -1)
    rays.flags.writeable = False
    return rays


def cast(bodies: Sequence[Body], camera: Camera, size: int) -> Surface:
    """What a picture of size x size pixels sees."""
    rays = camera.rotation.T @ _rays(size, camera.focal)
    start = camera.position
    hits = np.empty((len(bodies) + 2, rays.shape[1]))
    with np.errstate(all="ignore"):
        for row, (distance, axis) in enumerate(((WALL - start[1], 1), (-start[2], 2))):
            np.divide(distance, rays[axis], out=hits[row])
        hits[:2][hits[:2] <= 0] = np.inf
        for row, body in enumerate(bodies, 2):
            hits[row] = hit(body, start, rays)
    part = hits.argmin(0)
    depth = hits.min(0)
    points = start[:, None] + depth * rays
    normals = np.zeros_like(points)
    normals[1][part == 0] = -1
    normals[2][part == 1] = 1
    for row, body in enumerate(bodies, 2):
        (where,) = (part == row).nonzero()
        normals[:, where] = normal(body, points[:, where])
    return Surface(depth, part, points, normals, rays)


def hit(body: Body, start: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Where rays enter a body, in lengths of the ray; inf = they miss it, or it lies behind.

    Args:
      start: (3,) or (3, rays), outside of the body. rays: (3,) or (3, rays).
    """
    with np.errstate(all="ignore"):
        found = _FORMS[body.shape](body, (start[0] - body.x, start[1] - body.y, start[2]), rays)
        return np.where(found > 0, found, np.inf)  # also of what is NaN


def _roots(a, b, c):
    """The two solutions of a t^2 + 2 b t + c = 0, in order where a > 0; NaN where none."""
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def _sphere(body: Body, start, rays):
    x, y, z = start
    z = z - body.radius
    u, v, w = rays
    c = x * x + y * y + z * z - body.radius**2
    return _roots(u * u + v * v + w * w, x * u + y * v + z * w, c)[0]


def _turned(body: Body, x, y):
    """Into the frame of the body."""
    cos, sin = np.cos(body.yaw), np.sin(body.yaw)
    return cos * x + sin * y, cos * y - sin * x


def _cube(body: Body, start, rays):
    half = body.foot
    begins, ends = [], []
    starts = (*_turned(body, start[0], start[1]), start[2] - half)
    for place, way in zip(starts, (*_turned(body, rays[0], rays[1]), rays[2]), strict=True):
        inverse = 1 / way
        middle, spread = -place * inverse, half * np.abs(inverse)
        begins.append(middle - spread)
        ends.append(middle + spread)
    begin = np.maximum(np.maximum(begins[0], begins[1]), begins[2])
    end = np.minimum(np.minimum(ends[0], ends[1]), ends[2])
    return np.where(begin <= end, begin, np.inf)


def _cylinder(body: Body, start, rays):
    x, y, z = start
    u, v, w = rays
    side, _ = _roots(u * u + v * v, x * u + y * v, x * x + y * y - body.foot**2)
    height = z + side * w
    side = np.where((height >= 0) & (height <= body.height), side, np.inf)
    lid = (body.height - z) / w
    on_lid = ((x + lid * u) ** 2 + (y + lid * v) ** 2 <= body.foot**2) & (w < 0)
    return np.where(on_lid, lid, side)


def _cone(body: Body, start, rays):
    x, y, z = start
    u, v, w = rays
    slope = (body.foot / body.height) ** 2
    below = body.height - z  # of the tip
    a = u * u + v * v - slope * w * w
    b = x * u + y * v + slope * below * w
    first, second = _roots(a, b, x * x + y * y - slope * below * below)
    found = np.inf
    for t in (first, second):
        depth = below - t * w
        found = np.minimum(found, np.where((depth >= 0) & (depth <= body.height), t, np.inf))
    return found


_FORMS = (_sphere, _cube, _cylinder, _cone)


def normal(body: Body, points: np.ndarray) -> np.ndarray:
    """Outward unit normals (3, N) at points (3, N) of the surface of a body."""
    x, y, z = points[0] - body.x, points[1] - body.y, points[2]
    if body.shape == 0:
        return np.stack([x, y, z - body.radius]) / body.radius
    if body.shape == 1:
        local = np.stack([*_turned(body, x, y), z - body.foot])
        face = np.abs(local).argmax(0)
        out = np.where(face == np.arange(3)[:, None], np.sign(local), 0.0)
        cos, sin = np.cos(body.yaw), np.sin(body.yaw)
        return np.stack([cos * out[0] - sin * out[1], sin * out[0] + cos * out[1], out[2]])
    flat = np.sqrt(x * x + y * y) + 1e-12
    if body.shape == 2:
        lid = body.height - z < body.foot - flat  # the nearer of the two surfaces
        return np.where(lid, [[0.0], [0.0], [1.0]], np.stack([x, y, 0 * z]) / flat)
    slope = body.foot / body.height
    return np.stack([x / flat, y / flat, slope + 0 * z]) / np.sqrt(1 + slope * slope)


def shade(surface: Surface, bodies: Sequence[Body], style: np.ndarray, stripes: float):
    """Colours float (3, rays) in 0..1.

    Args:
      style: rows as `toyworld_scene.DAY`. stripes: 0 = a ground of tiles, 1 = of boards.
    """
    light, points, normals = style[0], surface.points, surface.normals
    base = _ground_and_wall(surface, style, stripes)
    gloss = np.zeros(surface.depth.shape)
    sun = np.maximum(light @ normals, 0)
    halfway = light[:, None] - surface.rays / np.sqrt((surface.rays**2).sum(0))
    halfway /= np.sqrt((halfway**2).sum(0))
    around = np.ones(surface.depth.shape)
    for row, body in enumerate(bodies, 2):
        is_here = surface.part == row
        (here,) = is_here.nonzero()
        x, _ = _turned(body, points[0, here] - body.x, points[1, here] - body.y)
        rings = np.sin((points[2, here] + 0.3 * x) * (24 / body.radius**0.5))
        base[:, here] = (body.rgb**2)[:, None] * (1 + GRAIN[body.material] * rings)
        facing = np.maximum((halfway[:, here] * normals[:, here]).sum(0), 0)
        gloss[here] = GLOSS[body.material] * facing ** SHARP[body.material]
        sun[np.isfinite(hit(body, points, light)) & ~is_here] = 0
        gap = np.hypot(points[0] - body.x, points[1] - body.y) - body.foot
        height = np.maximum(points[2], 0)
        near = np.maximum(gap, 0) ** 2 + height**2
        around *= 1 - np.where(is_here, 0, 0.55 / (1 + near * (9 / body.radius**2)))
        around[here] *= 0.72 + 0.28 * np.minimum(points[2, here] / body.height * 1.6, 1)
    sky = style[2][:, None] * (around * (0.78 + 0.22 * normals[2]))
    lit = base * (sky + style[1][:, None] * (0.95 * sun))
    lit += style[1][:, None] * (gloss * (sun > 0))
    return np.sqrt(np.minimum(lit, 1))


def _ground_and_wall(surface: Surface, style: np.ndarray, stripes: float) -> np.ndarray:
    """Squared colours (3, rays), of which those on bodies mean nothing."""
    x, y, z = surface.points
    across = np.sin(x * (np.pi / 0.6))
    tiles = np.clip(9 * across * np.sin(y * (np.pi / 0.6)), -1, 1)
    if stripes:
        boards = np.clip(5 * np.sin((x + 0.4 * y) * (2 * np.pi / 0.45)), -1, 1)
        tiles = (1 - stripes) * tiles + stripes * boards
    squared = style[3:7] ** 2
    share = 0.5 + 0.5 * tiles
    ground = squared[1][:, None] + (squared[0] - squared[1])[:, None] * share
    high = np.clip(z * 0.4, 0, 1)
    wall = squared[2][:, None] + (squared[3] - squared[2])[:, None] * high
    wall *= np.where(z < 0.16, 1.3, 1 + 0.03 * across)
    return np.where(surface.part == 0, wall, ground)
