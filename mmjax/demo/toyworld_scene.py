"""The scenes of ToyWorld: what stands where, how it moves, and the cameras that look at it.

World frame in metres: x to the right, y away from the main camera, z up; the ground is z = 0, the
wall y = WALL. Camera frame: x to the right, y down, z forward, as in OpenCV.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["COLOURS", "MATERIALS", "SHAPES", "SIZES", "Body", "Camera", "Scene", "draw", "held_out"]

SHAPES = ("sphere", "cube", "cylinder", "cone")
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
SIZES = ("small", "large")
MATERIALS = ("wood", "metal", "ceramic")
WALL = 2.4
FRAME = 0.125  # seconds between two frames
LASTS = 2.0  # seconds for which no two bodies meet
GRAVITY = np.array([0.0, 0.0, -9.81])  # m/s2
FOCAL = 1.35  # of the width of the picture: 41 degrees
REACH = 1.14  # radius of the footprint of any body, in its `radius`
NEAR = 0.65  # of the sum of two radii: the least gap in the picture, so that both are seen
IN_FRONT = 0.5  # metres by which one is nearer than another to be called in front of it
AIM = np.array([0.0, 0.15, 0.3])  # where cameras look
RADII = ((0.27, 0.33), (0.45, 0.53))  # by size
# Of each shape, in its radius: radius of the footprint (half the side of a cube), and height.
FORMS = ((1.0, 2.0), (0.8, 1.6), (0.75, 1.7), (0.9, 2.1))
# A style is seven rows of x, y, z or of red, green, blue, and the colours of bodies.
DAY = np.array(
    [
        [-0.55, -0.75, 1.0],  # towards the light
        [1.05, 1.0, 0.92],  # its colour
        [0.44, 0.48, 0.55],  # light from everywhere
        [0.80, 0.75, 0.68],  # ground
        [0.70, 0.64, 0.57],  # ground, the other tile
        [0.70, 0.78, 0.84],  # wall, below
        [0.86, 0.90, 0.92],  # wall, above
        *[[0.86, 0.28, 0.26], [0.95, 0.56, 0.20], [0.95, 0.83, 0.30], [0.36, 0.70, 0.40]],
        *[[0.26, 0.74, 0.74], [0.25, 0.44, 0.83], [0.57, 0.37, 0.77], [0.94, 0.55, 0.71]],
    ]
)
DUSK = np.array(
    [
        [0.95, -0.45, 0.6],
        [1.15, 0.78, 0.55],
        [0.30, 0.30, 0.46],
        [0.50, 0.52, 0.58],
        [0.38, 0.40, 0.48],
        [0.52, 0.44, 0.56],
        [0.80, 0.58, 0.52],
        *[[0.66, 0.14, 0.18], [0.80, 0.42, 0.10], [0.80, 0.72, 0.14], [0.16, 0.48, 0.24]],
        *[[0.10, 0.54, 0.58], [0.12, 0.24, 0.64], [0.40, 0.20, 0.58], [0.80, 0.38, 0.58]],
    ]
)
LOOK = len(DAY) - len(COLOURS)  # rows before the colours of bodies


class Body(NamedTuple):
    """A solid that stands on the ground. Numbers of shape, colour, size, material are indices."""

    shape: int
    colour: int
    size: int
    material: int
    radius: float
    x: float
    y: float
    yaw: float
    velocity: tuple[float, float]  # m/s
    spin: float  # rad/s about the vertical
    rgb: np.ndarray  # true colour in 0..1

    @property
    def height(self) -> float:
        return self.radius * FORMS[self.shape][1]

    @property
    def foot(self) -> float:
        """Radius of what stands on the ground; half the side of a cube."""
        return self.radius * FORMS[self.shape][0]

    def at(self, seconds: float) -> Body:
        """The body at another time."""
        vx, vy = self.velocity
        return self._replace(
            x=self.x + vx * seconds, y=self.y + vy * seconds, yaw=self.yaw + self.spin * seconds
        )


class Camera(NamedTuple):
    """A pinhole: p_camera = rotation @ p_world + translation, picture = focal * (x, y) / z + 1/2.

    `rotation` (3, 3) and `translation` (3,) in metres; `focal` is a fraction of the picture's side.
    """

    rotation: np.ndarray
    translation: np.ndarray
    focal: float = FOCAL

    @property
    def position(self) -> np.ndarray:
        return -self.translation @ self.rotation

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Points (3, N) of the world in the frame of the camera."""
        return self.rotation @ points + self.translation[:, None]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Places (2, N) in the picture, in 0..1 where seen, of points (3, N) of the world."""
        seen = self.inside(points)
        return self.focal * seen[:2] / seen[2] + 0.5

    def as_dict(self) -> dict[str, np.ndarray]:
        """As `mmjax.modalities.camera.Camera` takes it; of focal lengths and centre fractions."""
        focal, centre = np.full(2, self.focal, np.float32), np.full(2, 0.5, np.float32)
        pose = self.rotation.astype(np.float32), self.translation.astype(np.float32)
        return {"focal": focal, "centre": centre, "rotation": pose[0], "translation": pose[1]}


class Scene(NamedTuple):
    """Bodies from left to right in the picture, the camera, the look, and seeds of what is drawn
    beside them."""

    bodies: tuple[Body, ...]
    camera: Camera
    style: np.ndarray  # (7, 3), rows as in DAY
    whims: np.ndarray  # (8,) in 0..1: the choices of words
    seed: tuple[int, ...]

    def at(self, frame: int) -> tuple[Body, ...]:
        """The bodies at a frame."""
        return tuple(body.at(frame * FRAME) for body in self.bodies)

    def generator(self, purpose: int) -> np.random.Generator:
        """Chance for one purpose, whatever else is drawn."""
        return np.random.default_rng([*self.seed, purpose])

    def left_of(self, i: int, j: int) -> bool:
        """Whether body i is left of body j in the picture, by their middles."""
        return i < j

    def in_front_of(self, i: int, j: int) -> bool:
        """Whether body i is nearer to the camera than body j, by IN_FRONT or more."""
        near, far = (self.camera.inside(middle(self.bodies[k]))[2, 0] for k in (i, j))
        return bool(near + IN_FRONT <= far)


def held_out(count: int) -> frozenset[tuple[int, int]]:
    """The first `count` of 16 pairs (shape, colour): each colour once, then each again."""
    of = len(COLOURS)
    return frozenset(((i + i // of) % len(SHAPES), i % of) for i in range(count))


def middle(body: Body) -> np.ndarray:
    """(3, 1) in the world."""
    return np.array([[body.x], [body.y], [body.height / 2]])


def look(azimuth: float, elevation: float, distance: float) -> Camera:
    """A camera on a sphere around the scene, in radians and metres; azimuth 0 faces the wall."""
    flat, up = math.cos(elevation), math.sin(elevation)
    forward = np.array([flat * math.sin(azimuth), flat * math.cos(azimuth), -up])
    right = np.array([math.cos(azimuth), -math.sin(azimuth), 0.0])
    down = np.array([-up * math.sin(azimuth), -up * math.cos(azimuth), -flat])
    rotation = np.stack([right, down, forward])
    position = AIM - distance * forward
    return Camera(rotation, -rotation @ position)


def draw(
    seed: tuple[int, ...], most: int, shift: float, banned: frozenset[tuple[int, int]]
) -> Scene:
    """One scene.

    Args:
      most: largest number of bodies. shift: 0 = the style of day, 1 = of dusk.
      banned: pairs (shape, colour) that may not occur.
    """
    rng = np.random.default_rng(seed)
    pairs = [(s, c) for s in range(len(SHAPES)) for c in range(len(COLOURS))]
    allowed = [pair for pair in pairs if pair not in banned]
    count = int(rng.integers(1, most + 1))
    chosen = rng.permutation(len(allowed))[:count]
    kinds = rng.integers(0, (len(SIZES), len(MATERIALS)), (count, 2)).tolist()
    chance = rng.random(3 + 5 * count)
    camera = look(*(np.array([-0.21, 0.36, 4.0]) + [0.42, 0.22, 0.4] * chance[:3]).tolist())
    one = chance[3:].reshape(count, 5)
    radii = np.array([RADII[size][0] for size, _ in kinds])
    radii += one[:, 0] * [RADII[size][1] - RADII[size][0] for size, _ in kinds]
    places = _places(rng, radii, camera)
    velocities = _velocities(rng, radii, places)
    look_of = (1 - shift) * DAY + shift * DUSK
    look_of[0] += 0.15 * (rng.random(3) - 0.5)
    look_of[0] /= math.sqrt(look_of[0] @ look_of[0])
    look_of[3:LOOK] *= 0.94 + 0.12 * rng.random((4, 3))
    bodies = []
    for i, (x, y) in enumerate(places.tolist()):
        shape, colour = allowed[chosen[i]]
        size, material = kinds[i]
        rgb = np.clip(look_of[LOOK + colour] + 0.05 * (one[i, 2:5] - 0.5), 0, 1)
        yaw, spin = (rng.random(2) * [math.pi / 2, 3.0] - [0, 1.5]).tolist()
        velocity = tuple(velocities[i].tolist())
        radius = float(radii[i])
        bodies.append(Body(shape, colour, size, material, radius, x, y, yaw, velocity, spin, rgb))
    across = camera.project(np.concatenate([middle(b) for b in bodies], 1))[0]
    ordered = tuple(bodies[i] for i in np.argsort(across))
    return Scene(ordered, camera, look_of[:LOOK], rng.random(8), seed)


def _places(rng: np.random.Generator, radii: np.ndarray, camera: Camera) -> np.ndarray:
    """(count, 2) on the ground: apart, inside the picture, and none hidden behind another."""
    count = len(radii)
    batch = 4 ** (count + 1)
    i, j = np.triu_indices(count, 1) if count > 1 else (np.zeros(0, int),) * 2
    sums = radii[i] + radii[j]
    while True:
        spots = rng.random((2, batch, count)) * [[[2.8]], [[2.0]]] - [[[1.4]], [[0.9]]]
        flat = np.concatenate([spots, np.broadcast_to(radii, (1, batch, count))])
        seen = camera.inside(flat.reshape(3, -1)).reshape(3, batch, count)
        across = seen[0] / seen[2]
        margin = 0.48 / camera.focal - REACH * radii / seen[2]
        room = ((np.abs(across) < margin) & (seen[1] / seen[2] < margin)).all(1)
        gaps = spots[:, :, i] - spots[:, :, j]
        apart = (np.hypot(gaps[0], gaps[1]) > REACH * sums + 0.06).all(1)
        distance = 0.5 * (seen[2][:, i] + seen[2][:, j])
        shown = (np.abs(across[:, i] - across[:, j]) * distance > NEAR * sums).all(1)
        good = np.flatnonzero(room & apart & shown)
        if len(good):
            return spots[:, good[0]].T


def _velocities(rng: np.random.Generator, radii: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(count, 2) m/s, by which no two bodies meet for LASTS seconds, nor one the wall."""
    count, batch = len(radii), 12
    speed, angle = rng.random((2, batch, count)) * [[[0.8]], [[2 * math.pi]]]
    moves = np.stack([speed * np.cos(angle), speed * np.sin(angle)], -1)
    away = places[:, 1] + LASTS * moves[:, :, 1] + REACH * radii < WALL - 0.1
    good = away.all(1)
    for i in range(count):
        for j in range(i):
            gap, move = places[i] - places[j], moves[:, i] - moves[:, j]
            when = np.clip(-(move @ gap) / np.maximum((move**2).sum(1), 1e-9), 0, LASTS)
            nearest = gap + when[:, None] * move
            good &= np.hypot(nearest[:, 0], nearest[:, 1]) > REACH * (radii[i] + radii[j])
    found = np.flatnonzero(good)
    # All alike never meet one another.
    return moves[found[0]] if len(found) else np.broadcast_to([[0.2, -0.1]], (count, 2))


def path(scene: Scene, frames: int) -> tuple[list[Camera], np.ndarray]:
    """The camera at each frame, and what an inertial unit in it tells, float64 (frames, 6).

    Between frames the acceleration in the world and the angular rate in the camera are constant;
    a row holds from its frame to the next one: specific force (acceleration less gravity) in m/s2,
    then angular rate in rad/s, both in the frame of the camera.
    """
    rng = scene.generator(1)
    velocity = (rng.random(3) - 0.5) * [0.6, 0.2, 0.2]
    shaken = rng.normal(size=(frames, 6)) * [0.8, 0.4, 0.4, 0.05, 0.05, 0.08]
    rotation, position = scene.camera.rotation, scene.camera.position
    cameras, told = [], np.zeros((frames, 6))
    for frame in range(frames):
        cameras.append(Camera(rotation, -rotation @ position))
        acceleration, rate = shaken[frame, :3], shaken[frame, 3:]
        told[frame, :3] = rotation @ (acceleration - GRAVITY)
        told[frame, 3:] = rate
        position = position + velocity * FRAME + 0.5 * acceleration * FRAME**2
        velocity = velocity + acceleration * FRAME
        rotation = turn(-rate * FRAME) @ rotation
    return cameras, told


def turn(vector: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) about a vector, by its length in radians (Rodrigues)."""
    angle = math.sqrt(vector @ vector)
    x, y, z = vector / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross)
