"""The streams of ToyWorld: what each tells of a scene. S = `size`; depths and places in metres."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax.demo import toyworld_render, toyworld_scene
from mmjax.demo.toyworld_scene import COLOURS, MATERIALS, SHAPES, SIZES, Body, Camera
from mmjax.demo.toyworld_shot import Shot

__all__ = ["CLASSES", "RATE", "STREAMS"]

CLASSES = ("wall", "ground", *SHAPES)  # of `semseg`, `box_labels` and nodes of `graph`
RATE = 16_000  # samples of sound per second
PITCHES = (262.0, 330.0, 392.0, 523.0)  # Hz, by shape
LOUDNESS = (0.2, 0.6)  # amplitude, by size
TONE, GAP, FADE = 0.12, 0.04, 0.01  # seconds
DEGREES = {"wall": 21.0, "ground": 17.0, "wood": 24.0, "metal": 11.0, "ceramic": 38.0}
WARMER = 1.5  # degrees Celsius per metre of height
THRESHOLD = 0.1  # change of the logarithm of brightness that is one event
FACED = (1, 2)  # shapes that have creases: cubes at each corner, cylinders around the lid
VISIBLE, HIDDEN, OUTSIDE = 2.0, 1.0, 0.0  # of keypoints


def _image(shot: Shot) -> np.ndarray:
    return shot.picture(shot.clean, 0)


def _depth(shot: Shot) -> np.ndarray:
    return shot.map(shot.surface.depth).astype(np.float32)


def _normals(shot: Shot) -> np.ndarray:
    inside = shot.scene.camera.rotation @ shot.surface.normals
    return shot.map(inside).transpose(1, 2, 0).astype(np.float32)


def _semseg(shot: Shot) -> np.ndarray:
    classes = np.array([0, 1, *(2 + body.shape for body in shot.scene.bodies)], np.uint8)
    return classes[shot.map(shot.surface.part)]


def _instances(shot: Shot) -> np.ndarray:
    return np.maximum(shot.map(shot.surface.part) - 1, 0).astype(np.uint8)


def _edges(shot: Shot) -> np.ndarray:
    """Where another part or another face begins; bodies are convex, so depth jumps nowhere else."""
    part, normals = shot.map(shot.surface.part), shot.map(shot.surface.normals)
    has_faces = np.array([False, False, *(b.shape in FACED for b in shot.scene.bodies)])[part]
    flat = np.array([False, False, *(b.shape == FACED[0] for b in shot.scene.bodies)])[part]
    edges = np.zeros(part.shape, bool)
    beside = np.s_[..., :-1], np.s_[..., 1:]
    below = np.s_[..., :-1, :], np.s_[..., 1:, :]
    for near, far in (beside, below):
        lid = has_faces[near] & (np.abs(normals[2][near] - normals[2][far]) > 0.5)
        corner = flat[near] & ((normals[near] * normals[far]).sum(0) < 0.5)
        edges[near] |= (part[near] != part[far]) | lid | corner
    return edges


def _flow(shot: Shot) -> np.ndarray:
    surface, camera = shot.surface, shot.path[0][1]
    moved = surface.points.copy()
    later = shot.scene.at(1)
    for row, (body, then) in enumerate(zip(shot.scene.bodies, later, strict=True), 2):
        (here,) = (surface.part == row).nonzero()
        x, y = surface.points[0, here] - body.x, surface.points[1, here] - body.y
        cos, sin = np.cos(then.yaw - body.yaw), np.sin(then.yaw - body.yaw)
        moved[0, here], moved[1, here] = then.x + cos * x - sin * y, then.y + sin * x + cos * y
    before, after = shot.scene.camera.project(surface.points), camera.project(moved)
    return shot.map((after - before) * shot.size).transpose(1, 2, 0).astype(np.float32)


def _boxes(shot: Shot) -> np.ndarray:
    boxes = np.zeros((len(shot.shown), 4), np.float32)
    for row, i in enumerate(shot.shown):
        xs, ys = (np.flatnonzero(shot.seen[i].any(axis)) for axis in (0, 1))
        boxes[row] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes / np.float32(shot.size)


def _box_labels(shot: Shot) -> np.ndarray:
    return np.array([2 + shot.scene.bodies[i].shape for i in shot.shown], np.int64)


def _keypoints(shot: Shot) -> np.ndarray:
    scene, camera = shot.scene, shot.scene.camera
    points = np.stack([_marks(body, camera) for body in scene.bodies])
    made = np.zeros((*points.shape[:2], 3), np.float32)
    for i, marks in enumerate(points):
        rays = marks.T - camera.position[:, None]
        others = [b for j, b in enumerate(scene.bodies) if j != i]
        clear = [toyworld_render.hit(b, camera.position, rays) >= 1 for b in others]
        free = np.logical_and.reduce(clear) if clear else np.ones(len(marks), bool)
        places = camera.project(marks.T)
        inside = ((places >= 0) & (places <= 1)).all(0)
        made[i, :, :2] = places.T
        made[i, :, 2] = np.where(inside, np.where(free, VISIBLE, HIDDEN), OUTSIDE)
    return made


def _marks(body: Body, camera: Camera) -> np.ndarray:
    """(5, 3) in the world: middle, top, foot, and what is farthest left and right of the axis, as
    the camera sees it: on the ground or, of a sphere, at its middle."""
    across = camera.rotation[0, :2] / np.hypot(*camera.rotation[0, :2])
    low = body.radius if body.shape == 0 else 0.0
    marks = np.array([[body.x, body.y, z] for z in (body.height / 2, body.height, 0, low, low)])
    if body.shape == 1:
        angles = body.yaw + np.pi / 4 + np.pi / 2 * np.arange(4)
        corners = body.foot * np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], 1)
        order = np.argsort(corners @ across)
        marks[3, :2] += corners[order[0]]
        marks[4, :2] += corners[order[-1]]
    else:
        marks[3, :2] -= body.foot * across
        marks[4, :2] += body.foot * across
    return marks


def _points(shot: Shot) -> np.ndarray:
    rng, pixels = shot.scene.generator(10), shot.size**2
    chosen = rng.choice(pixels, shot.num_points, replace=shot.num_points > pixels)
    return shot.scene.camera.inside(shot.surface.points[:, chosen]).T.astype(np.float32)


def _palette(shot: Shot) -> np.ndarray:
    sizes = shot.seen.sum((1, 2))
    order = np.argsort(-sizes, kind="stable")
    colours = [shot.scene.bodies[i].rgb for i in order]
    return (np.array(colours) * 255 + 0.5).astype(np.uint8)


def _views(shot: Shot) -> np.ndarray:
    return np.stack([shot.view(number) for number in range(shot.num_views)])


def _view_cameras(shot: Shot) -> list[dict[str, np.ndarray]]:
    return [shot.view_camera(number).as_dict() for number in range(shot.num_views)]


def _video(shot: Shot) -> np.ndarray:
    return np.stack([shot.picture(shot.frame(t), t) for t in range(shot.frames)])


def _sound(shot: Shot) -> np.ndarray:
    time = np.arange(round(TONE * RATE)) / RATE
    fade = np.clip(np.minimum(time, TONE - time) / FADE, 0, 1)
    pause = np.zeros(round(GAP * RATE))
    parts = []
    for body in shot.scene.bodies:
        tone = np.sin(2 * np.pi * PITCHES[body.shape] * time)
        parts += [LOUDNESS[body.size] * fade * tone, pause]
    return np.concatenate(parts).astype(np.float32)


def _imu(shot: Shot) -> np.ndarray:
    return shot.path[1].astype(np.float32)


def _table(shot: Shot) -> dict[str, Any]:
    body = max(shot.scene.bodies, key=lambda body: body.radius)
    distance = shot.scene.camera.inside(toyworld_scene.middle(body))[2, 0]
    return {
        "shape": SHAPES[body.shape],
        "colour": COLOURS[body.colour],
        "size": SIZES[body.size],
        "material": MATERIALS[body.material],
        "radius": round(body.radius, 4),
        "height": round(body.height, 4),
        "distance": round(float(distance), 4),
        "speed": round(float(np.hypot(*body.velocity)), 4),
        "degrees": DEGREES[MATERIALS[body.material]],
    }


def _graph(shot: Shot) -> dict[str, Any]:
    scene, count = shot.scene, len(shot.scene.bodies)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    return {
        "nodes": [2 + body.shape for body in scene.bodies],
        "edges": [pair for pair in pairs if scene.in_front_of(*pair)],
    }


def _scalars(shot: Shot) -> dict[str, float]:
    return {
        "objects": float(len(shot.scene.bodies)),
        "mean_depth": float(shot.surface.depth.mean()),
        "background": float((shot.surface.part < 2).mean()),
        "brightness": float(shot.clean.mean()),
    }


def _thermal(shot: Shot) -> np.ndarray:
    materials = [MATERIALS[body.material] for body in shot.scene.bodies]
    degrees = np.array([DEGREES[name] for name in ("wall", "ground", *materials)])
    warm = degrees[shot.surface.part] + WARMER * shot.surface.points[2]
    return shot.map(warm).astype(np.float32)


def _events(shot: Shot) -> np.ndarray:
    before, after = (np.log(shot.frame(t).mean(0) + 0.05) for t in (0, 1))
    change = shot.map((after - before) / THRESHOLD)
    counts = np.stack([np.maximum(-change, 0), np.maximum(change, 0)], -1)
    return np.floor(counts).astype(np.uint8)


def _camera(shot: Shot) -> dict[str, np.ndarray]:
    return shot.scene.camera.as_dict()


STREAMS: dict[str, Callable[[Shot], Any]] = {
    "image": _image,
    "depth": _depth,
    "normals": _normals,
    "semseg": _semseg,
    "instances": _instances,
    "edges": _edges,
    "flow": _flow,
    "boxes": _boxes,
    "box_labels": _box_labels,
    "keypoints": _keypoints,
    "points": _points,
    "palette": _palette,
    "camera": _camera,
    "views": _views,
    "view_cameras": _view_cameras,
    "video": _video,
    "sound": _sound,
    "imu": _imu,
    "table": _table,
    "graph": _graph,
    "scalars": _scalars,
    "thermal": _thermal,
    "events": _events,
}
