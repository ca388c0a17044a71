"""One look at a scene of ToyWorld: what the streams of an example share, each made at first use."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from mmjax.demo import toyworld_render, toyworld_scene
from mmjax.demo.toyworld_render import Surface
from mmjax.demo.toyworld_scene import Body, Camera, Scene

__all__ = ["AZIMUTHS", "Shot"]

AZIMUTHS = (-0.75, 0.75, -0.4, 0.4, 0.0)  # of the other views, in radians
NOISE = 16  # purposes of chance from here on: noise of a frame; of a view, after all frames
VIEWS = 256


class Shot:
    """A scene seen by its camera; what several streams need is made once."""

    def __init__(
        self, scene: Scene, *, size: int, antialias: int, frames: int, num_views: int,
        num_points: int, noise: float, stripes: float,
    ):  # fmt: skip
        self.scene, self.size, self.antialias, self.frames = scene, size, antialias, frames
        self.num_views, self.num_points = num_views, num_points
        self.noise, self.stripes = noise, stripes

    @functools.cached_property
    def surface(self) -> Surface:
        return toyworld_render.cast(self.scene.bodies, self.scene.camera, self.size)

    @functools.cached_property
    def clean(self) -> np.ndarray:
        """The picture, float (3, S * S), without noise."""
        return self._drawn(self.scene.bodies, self.scene.camera)

    @functools.cached_property
    def path(self) -> tuple[list[Camera], np.ndarray]:
        return toyworld_scene.path(self.scene, self.frames)

    @functools.cached_property
    def seen(self) -> np.ndarray:
        """(bodies, S, S) bool: the visible pixels of each body."""
        parts = self.map(self.surface.part)
        return parts == np.arange(2, 2 + len(self.scene.bodies))[:, None, None]

    @functools.cached_property
    def shown(self) -> list[int]:
        """Bodies of which a pixel is seen."""
        return np.flatnonzero(self.seen.any((1, 2))).tolist()

    def map(self, flat: np.ndarray) -> np.ndarray:
        """(..., S * S) to (..., S, S)."""
        return flat.reshape(*flat.shape[:-1], self.size, self.size)

    def frame(self, number: int) -> np.ndarray:
        """A frame of the video without noise, float (3, S * S)."""
        if number == 0:
            return self.clean
        return self._drawn(self.scene.at(number), self.path[0][number])

    def view_camera(self, number: int) -> Camera:
        """The camera of another view."""
        chance = self.scene.generator(2 + number).random(3)
        azimuth = AZIMUTHS[number] + 0.2 * (chance[0] - 0.5)
        height = (0.35 if AZIMUTHS[number] else 1.1) + 0.2 * chance[1]
        return toyworld_scene.look(azimuth, height, 4.1 + 0.4 * chance[2])

    def view(self, number: int) -> np.ndarray:
        """The picture uint8 (S, S, 3) of another camera."""
        colours = self._drawn(self.scene.bodies, self.view_camera(number))
        return self.picture(colours, VIEWS + number)

    def picture(self, colours: np.ndarray, number: int) -> np.ndarray:
        """Pixels uint8 (S, S, 3), with the noise of a frame or a view."""
        colours = self.map(colours).transpose(1, 2, 0) * 255
        if self.noise:
            rng = self.scene.generator(NOISE + number)
            colours = colours + rng.normal(0, 255 * self.noise, colours.shape)
        return (np.clip(colours, 0, 255) + 0.5).astype(np.uint8)

    def _drawn(self, bodies: Sequence[Body], camera: Camera) -> np.ndarray:
        """Float (3, S * S); each pixel the mean of antialias x antialias rays."""
        fine = self.antialias
        is_own = fine == 1 and camera is self.scene.camera
        surface = self.surface if is_own else toyworld_render.cast(bodies, camera, self.size * fine)
        colours = toyworld_render.shade(surface, bodies, self.scene.style, self.stripes)
        if fine == 1:
            return colours
        blocks = colours.reshape(3, self.size, fine, self.size, fine)
        return blocks.mean((2, 4)).reshape(3, -1)
