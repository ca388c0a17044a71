"""Skeletons of named joints as sequences of ids, in the manner of the boxes of 4M-21."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given, sequence
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["COCO", "Keypoints"]

COCO = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)
PERSON, HIDDEN = 0, 1  # codes, before those of x and y
NUM_MARKS = 2
MOST_VISIBLE = 2  # COCO: 0 = not labelled, 1 = labelled but covered, 2 = seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keypoints(Modality):
    """Joints of several people: a token a person, then x and y of each joint, in `bins` ids each.

    Coordinates lie in 0..1 of the width and the height: round(x * (bins - 1)). A joint that is not
    visible is one token, and its coordinates are not looked at. People come by the distance of the
    corner (least x, least y) of their visible joints from (0, 0), those without any last. People
    beyond `max_people` are cut, and their tokens counted. Nobody is the end alone.

    A value is an array (people, joints, 2), of which all are visible, or (people, joints, 3) with
    visibility; or a list with a dict a person, joint -> (x, y) or (x, y, visibility), in which
    joints that are not visible may be left out. Visibility is a score in 0..1, or COCO's 0, 1, 2.

    Fields:
      joints: their names, in the order of arrays; COCO's 17 unless given.
      max_people: largest number of people. bins: ids per coordinate.
      min_visibility: from which a joint counts as visible.
      num_sentinels: ids for masked spans; must exceed the runs of a masked sequence.

    >>> points = Keypoints(joints=("head", "foot"), bins=11, num_sentinels=0)
    >>> piece = points.encode([[[0.5, 0, 1], [0, 0, 0]]])
    >>> piece.ids_L, points.decode(piece).tolist()
    (array([ 1,  8, 14,  2,  0], dtype=int32), [[[0.5, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    """

    joints: tuple[str, ...] = COCO
    max_people: ranges.Count = 8
    bins: Annotated[int, ranges.Range(2)] = 1000
    min_visibility: Annotated[float, ranges.Range(0, MOST_VISIBLE, has_low=False)] = 0.5
    num_sentinels: ranges.Natural = 16

    def __post_init__(self):
        ranges.check(self)
        if not self.joints or len(set(self.joints)) < len(self.joints):
            raise ValueError(f"Keypoints: joints={self.joints}; give each joint a name of its own.")

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream: up to 1 + 2 joints tokens a person, and an end token."""
        most = self.max_people * (1 + 2 * len(self.joints)) + 1
        return sequence.spec(name, NUM_MARKS + 2 * self.bins, most, self.num_sentinels)

    def encode(self, value: Any) -> Piece | None:
        """Ids int32 (L,), the end id last; position (p, p, p).

        Args:
          value: numbers (people, joints, 2 or 3) or a list of dicts as described above;
            None = absent.

        Raises ValueError for other shapes, unknown joints, and visible ones that are NaN or outside
        0..1.
        """
        if value is None:
            return None
        xy_PJ2, is_visible_PJ = self._checked(value)
        seen = np.where(is_visible_PJ[:, :, None], xy_PJ2, np.inf)
        order = np.argsort(np.hypot(*seen.min(axis=1).T), kind="stable")
        # A person a row: the mark, then two codes a joint, of which a hidden one has the first.
        codes = np.full((len(order), 1 + 2 * len(self.joints)), PERSON, np.int32)
        is_used, is_visible_PJ = np.ones(codes.shape, bool), is_visible_PJ[order]
        places = np.round(xy_PJ2[order] * (self.bins - 1)).astype(np.int32) + NUM_MARKS
        codes[:, 1::2] = np.where(is_visible_PJ, places[:, :, 0], HIDDEN)
        codes[:, 2::2] = places[:, :, 1] + self.bins
        is_used[:, 2::2] = is_visible_PJ
        kept, cut = slice(self.max_people), slice(self.max_people, None)
        num_cut = int(is_used[cut].sum())
        return sequence.piece(codes[kept][is_used[kept]], self.num_sentinels, num_cut)

    def decode(self, piece: Piece) -> np.ndarray:
        """Float32 (people, joints, 3): x, y and 1, or three zeros for a joint that is not visible.

        People whose tokens are broken are left out.
        """
        codes = sequence.codes(piece, "Keypoints", self.num_sentinels).tolist()
        starts = [i for i, code in enumerate(codes) if code == PERSON]
        ends = [*starts[1:], len(codes)]
        people = [self._person(codes[i + 1 : j]) for i, j in zip(starts, ends, strict=False)]
        whole = [person for person in people if person is not None]
        made = np.array(whole, np.float32).reshape(-1, len(self.joints), 3)
        made[:, :, :2] /= np.float32(self.bins - 1)
        return made

    def _person(self, codes: list[int]) -> list[tuple[int, int, int]] | None:
        """Places and visibility of each joint; None unless these are the codes of a person."""
        joints, at = [], 0
        while at < len(codes):
            x = codes[at] - NUM_MARKS
            y = codes[at + 1] - NUM_MARKS - self.bins if at + 1 < len(codes) else -1
            if codes[at] == HIDDEN:
                joints.append((0, 0, 0))
                at += 1
            elif 0 <= x < self.bins and 0 <= y < self.bins:
                joints.append((x, y, 1))
                at += 2
            else:
                return None
        return joints if len(joints) == len(self.joints) else None

    def read(self, item: str) -> Any:
        """A list of people, from a JSON file or from JSON text. Raises ValueError for others."""
        return sequence.read("Keypoints", item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """A JSON file: a list with a dict a person, joint -> [x, y, visibility]."""
        people = np.asarray(value, np.float64).round(4).tolist()
        return sequence.write([dict(zip(self.joints, p, strict=True)) for p in people], stem)

    def _checked(self, value: Any) -> tuple[np.ndarray, np.ndarray]:
        """(people, joints, 2), zeros where not visible, and bool (people, joints)."""
        if isinstance(value, Sequence) and any(isinstance(person, Mapping) for person in value):
            value = [self._listed(person) for person in value]
        rule = f"(people, {len(self.joints)} joints, 2 or 3)"
        numbers = given.array("Keypoints", value, rule).astype(np.float64)
        if numbers.ndim and not len(numbers):
            numbers = np.zeros((0, len(self.joints), 2))
        if numbers.shape[1:] not in ((len(self.joints), 2), (len(self.joints), 3)):
            raise ValueError(f"Keypoints: an array of shape {numbers.shape}; give {rule}.")
        visibility = numbers[:, :, 2] if numbers.shape[2] == 3 else np.full(numbers.shape[:2], 1.0)
        if not ((visibility >= 0) & (visibility <= MOST_VISIBLE)).all():
            raise ValueError(
                "Keypoints: a visibility is NaN or no score; give 0..1, or COCO's 0, 1, 2."
            )
        is_visible = visibility >= self.min_visibility
        xy = np.where(is_visible[:, :, None], numbers[:, :, :2], 0)
        if not ((xy >= 0) & (xy <= 1)).all():  # also false for NaN
            raise ValueError(
                "Keypoints: a visible joint is NaN or outside 0..1; divide by the width and the"
                " height, or give it a visibility of 0."
            )
        return xy, is_visible

    def _listed(self, person: Any) -> list[tuple[float, ...]]:
        """The joints of a person in the order of `joints`."""
        if not isinstance(person, Mapping):
            raise ValueError("Keypoints: some people are dicts, others not; give one of the two.")
        for joint, place in person.items():
            if joint not in self.joints:
                raise ValueError(
                    f"Keypoints: {joint!r} is no joint; give some of {', '.join(self.joints)}."
                )
            if not isinstance(place, (list, tuple, np.ndarray)) or len(place) not in (2, 3):
                raise ValueError(
                    f"Keypoints: {joint}={place!r}; give (x, y) or (x, y, visibility)."
                )
        empty = (0.0, 0.0, 0.0)
        return [(*person.get(joint, empty), 1.0)[:3] for joint in self.joints]
