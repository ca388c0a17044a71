"""One row a modality: whatever a modality is, it keeps these promises."""

from __future__ import annotations

import dataclasses
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_codes

from mmjax.modalities.actions import Actions
from mmjax.modalities.audio import Audio
from mmjax.modalities.bands import Bands
from mmjax.modalities.camera import Camera
from mmjax.modalities.codes import Codes
from mmjax.modalities.dense import Depth, Normals
from mmjax.modalities.edges import Edges
from mmjax.modalities.features import Features, Vector
from mmjax.modalities.graph import Graph
from mmjax.modalities.image import Image
from mmjax.modalities.imu import Imu
from mmjax.modalities.keypoints import Keypoints
from mmjax.modalities.label import Label
from mmjax.modalities.log_mel import LogMel
from mmjax.modalities.modality import Modality
from mmjax.modalities.motion import Events, Flow
from mmjax.modalities.palette import Palette
from mmjax.modalities.points import Points
from mmjax.modalities.raw import Bytes
from mmjax.modalities.segmentation import Instances, Segmentation
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.modalities.table import BinEdges, Table
from mmjax.modalities.text import Text
from mmjax.modalities.time_series import TimeSeries
from mmjax.modalities.video import Video
from mmjax.modalities.waveform import Waveform
from mmjax.tokenizers.sentencepiece import SentencePiece
from mmjax.typing import NUM_AXES

WORDS = ["one", "two", "twenty-one", "deux", "zwei", "zw\u00f6lf", "vingt et un", "treinta y dos"]


def tone(frequency: float, seconds: float = 0.3) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * 16000)) / 16000)


def nearly(tolerance: float) -> Callable[[Any, Any], bool]:
    return lambda raw, back: bool(np.abs(np.squeeze(back) - raw).max() <= tolerance)


def peak_at(raw: np.ndarray, back: np.ndarray) -> bool:
    """A tone comes back as a spectrogram whose loudest band holds its frequency."""
    frequency = np.abs(np.fft.rfft(raw)).argmax() * 16000 / len(raw)
    edges = np.interp(np.linspace(0, mel_of(8000.0), 66), *mel_table())
    band = int(back.max(axis=0).argmax())
    return bool(edges[band] <= frequency <= edges[band + 2])


def mel_table() -> tuple[np.ndarray, np.ndarray]:
    hertz = np.linspace(0, 8000, 80001)
    return np.array([mel_of(h) for h in hertz]), hertz


def mel_of(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def equal(raw: Any, back: np.ndarray) -> bool:
    return np.array_equal(np.asarray(raw), back)


def metres(raw: np.ndarray, back: np.ndarray) -> bool:
    """Where there is a measurement, it is kept to a part in ten thousand."""
    there = np.isfinite(raw) & (raw > 0)
    return np.array_equal(there, np.isfinite(back)) and np.allclose(
        raw[there], back[there], rtol=1e-4
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    modality: Modality
    values: tuple[Any, ...]  # of different sizes
    bad: tuple[Any, ...]  # each a ValueError that names the class
    same: Callable[[Any, Any], bool]  # raw and decoded
    cost: int  # bytecodes that encoding a value may run: a worker feeds hundreds of rows a step
    static: bool = True  # every piece has max_tokens tokens


def same_shape(raw: np.ndarray, back: np.ndarray) -> bool:
    """An untrained tokenizer draws nothing, but pictures of the right size in 0..1."""
    return back.shape[:2] == raw.shape and 0 <= back.min() <= back.max() <= 1


random = np.random.default_rng(0)
FAR = random.uniform(0.2, 60, (8, 16)).astype(np.float32)
HOLES = np.where(random.random((8, 16)) < 0.3, np.nan, FAR).astype(np.float32)
UNIT = random.normal(size=(8, 16, 3))
UNIT = (UNIT / np.linalg.norm(UNIT, axis=2, keepdims=True)).astype(np.float32)
UNIT[0] = 0
MOVES = random.uniform(-8, 8, (8, 16, 2)).astype(np.float32)
LOST = np.where(random.random((8, 16, 1)) < 0.3, np.nan, MOVES).astype(np.float32)
BANDS = (random.random((8, 16, 3)) * (80, 1, 1) + (-20, 0, 5)).astype(np.float32)
COUNTS = random.integers(0, 32, (8, 16, 2))
ROWS = {
    "text": Row(
        modality=Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=8), max_tokens=64),
        values=(*WORDS, "\u6f22\u5b57 <s_0> \U0001f600", "a  b"),
        bad=(7, 1.5, ["one", 2], np.zeros(3), "\ud800", b"\xff"),
        same=lambda raw, back: raw == back,
        cost=700,
        static=False,
    ),
    "image": Row(
        modality=Image(size=(16, 32), patch=8),
        values=tuple(random.random((16, 32, 3)).astype(np.float32) for _ in range(3)),
        bad=(np.full((4, 4), np.nan), np.full((4, 4), 200.0), np.zeros(4), np.zeros((2, 2, 4))),
        same=nearly(1e-6),
        cost=400,
    ),
    "image gray": Row(
        modality=Image(size=(8, 16), patch=4, channels=1, mean=(0.3,), std=(0.4,)),
        values=tuple(random.random((8, 16)).astype(np.float32) for _ in range(3)),
        bad=(np.full((4, 4), np.inf), np.zeros((8, 16), np.int64), np.zeros((0, 3))),
        same=nearly(1e-6),
        cost=400,
    ),
    "audio": Row(
        modality=Audio(seconds=0.5),
        values=(tone(440.0), tone(1000.0, 0.1), tone(3000.0, 0.5)),
        bad=(np.full(4, np.nan), np.zeros((2, 2, 2)), np.zeros(4, np.uint8), "sound"),
        same=peak_at,
        cost=1600,
    ),
    "audio at several speeds": Row(
        modality=Audio(seconds=0.5, speed_perturbation=0.2),
        values=(tone(440.0), tone(3000.0, 0.5)),
        bad=(np.full(4, np.nan), "sound"),
        same=peak_at,
        cost=1600,
    ),
    "log-mel of Whisper": Row(
        modality=LogMel(seconds=0.5, num_mels=40, patch=(10, 0)),
        values=(tone(440.0), tone(1000.0, 0.1), tone(3000.0, 0.5)),
        bad=(np.full(4, np.nan), np.zeros((2, 2, 2)), np.zeros(4, np.uint8), "sound"),
        same=lambda raw, back: back.shape == (50, 40),  # tests/modalities/test_log_mel.py says more
        cost=1900,
    ),
    "log-mel of AST": Row(
        modality=LogMel(like="ast", seconds=0.48, num_mels=48, patch=(16, 16)),
        values=(tone(440.0), tone(3000.0, 0.3)),
        bad=(np.full(4, np.nan), "sound"),
        same=lambda raw, back: back.shape == (48, 48),
        cost=2000,
    ),
    "waveform": Row(
        modality=Waveform(seconds=0.5, patch=100, scale=0.5),
        values=(tone(440.0, 0.01), tone(1000.0, 0.1), tone(3000.0, 0.5)),
        bad=(np.full(4, np.nan), np.zeros((2, 2, 2)), np.zeros(4, np.uint8), "sound"),
        same=lambda raw, back: (
            np.allclose(raw, back[: len(raw)], atol=1e-6) and not back[len(raw) :].any()
        ),
        cost=600,
        static=False,
    ),
    "codes": Row(
        modality=Codes(base=toy_codes.BASE),
        values=tuple(random.random((8, 16)).astype(np.float32) for _ in range(3)),
        bad=(np.full((4, 4), np.nan), np.zeros(4)),
        same=same_shape,
        cost=900,
    ),
    "boxes": Row(
        modality=Boxes(max_boxes=3, bins=101, num_sentinels=8),
        values=(np.zeros((0, 4)), [[0, 0.2, 0.5, 1]], [[0.1, 0, 0.2, 0.3], [0.5, 0.5, 1, 0.57]]),
        bad=("boxes", np.zeros(5), [[0, 0, 1]], [[0.5, 0, 0.4, 1]], [[0, 0, 2, 1]], [[np.nan] * 4]),
        same=lambda raw, back: np.allclose(np.reshape(raw, (-1, 4)), back, atol=1e-6),
        cost=700,
        static=False,
    ),
    "boxes with sizes": Row(
        modality=Boxes(max_boxes=3, bins=101, num_sentinels=8, order="cxcywh"),
        values=(
            [0.5, 0.5, 1, 1],
            {"x0": 0, "w": 32, "cy": 10, "h": 20, "width": 64, "height": 40},
            {"x0": [0.1, 0.5], "x1": [0.2, 1], "y0": [0, 0.5], "y1": [0.3, 0.57]},
        ),
        bad=(
            "boxes",
            np.zeros(3),
            {"x0": 1, "y0": 2},
            {"x0": 0, "x1": "a", "y0": 0, "y1": 1},
            {"boxes": [[0, 0, 1, 1]], "width": 0, "height": 3},
            [[0.9, 0.5, 0.4, 1]],
        ),
        same=lambda raw, back: (
            1 <= len(back) <= 2 and bool((back >= 0).all() and (back <= 1).all())
        ),
        cost=2300,
        static=False,
    ),
    "label": Row(
        modality=Label(names=("cat", "dog", "great tit")),
        values=(0, "dog", b"great tit\n", np.int64(2), "1"),
        bad=("cow", 3, -1, 1.5, True, b"\xff", np.zeros(2), "9" * 40, ["cat"]),
        same=lambda raw, back: Label(names=("cat", "dog", "great tit")).given(raw) == back,
        cost=300,
    ),
    "label of numbers": Row(
        modality=Label(num_classes=10),
        values=(0, 9, b"3", "7", np.uint8(5)),
        bad=(10, "cat", 0.5, None.__class__),
        same=lambda raw, back: int(raw) == back,
        cost=400,
    ),
    "bytes": Row(
        modality=Bytes(max_tokens=64),
        values=(b"", b"\x00\xff\n", bytearray(range(63)), "zw\u00f6lf"),
        bad=(7, 1.5, ["one", 2], np.zeros(3), "\ud800"),
        same=lambda raw, back: (raw.encode() if isinstance(raw, str) else bytes(raw)) == back,
        cost=300,
        static=False,
    ),
    "palette": Row(
        modality=Palette(max_colours=4),
        values=(
            [],
            [[255, 0, 16]],
            random.integers(0, 256, (4, 3)).astype(np.uint8),
        ),
        bad=(
            "red",
            [255, 0, 16],
            [[256, 0, 0]],
            [[-1, 0, 0]],
            [[0.5, 2.0, 0]],
            [[1, 2], [3]],
            np.zeros((2, 4)),
            [[None, 0, 0]],
            np.zeros((2, 3), bool),
        ),
        same=lambda raw, back: back.tolist() == np.asarray(raw).tolist(),
        cost=500,
        static=False,
    ),
    "palette of fractions": Row(
        modality=Palette(bins=11),
        values=([[0, 0.5, 1.0]], random.random((7, 3))),
        bad=(np.full((1, 3), np.nan), np.full((1, 3), np.inf), np.full((1, 3), 1.01)),
        same=lambda raw, back: bool(np.abs(back / 255 - raw).max() <= 0.05 + 0.5 / 255 + 1e-9),
        cost=500,
        static=False,
    ),
    "keypoints": Row(
        modality=Keypoints(joints=("head", "hand", "foot"), bins=101, max_people=2),
        values=(
            np.zeros((0, 3, 3)),
            [[[0.5, 0, 1], [0, 0, 0], [0.5, 1, 1]]],
            [[[0.1, 0, 1], [0, 0, 0], [0.07, 1, 1]], [[0.5, 0.5, 1], [0.2, 1, 1], [0.3, 0.4, 1]]],
        ),
        bad=(
            "people",
            np.zeros((3, 3)),
            np.zeros((1, 2, 3)),
            np.full((1, 3, 2), np.nan),
            [{}, 1],
            np.full((1, 3, 3), 1.1),
            [[[0, 0, 3]] * 3],
            [{"tail": (0, 0)}],
            [{"head": 0.5}],
            [{"head": ("a", "b")}],
        ),
        same=lambda raw, back: np.allclose(raw, back, atol=1e-6),
        cost=1100,
        static=False,
    ),
    "time series": Row(
        modality=TimeSeries(channels=3, rate=8.0, seconds=2.0, patch=4, mean=(1.0,), std=(2.0,)),
        values=(random.normal(0, 9, (4, 3)), random.integers(0, 9, (16, 3))),
        bad=(
            "sound",
            np.zeros(16),
            np.zeros((16, 2)),
            np.full((4, 3), np.nan),
            np.zeros((0, 3)),
            np.full((4, 3), np.inf),
            np.full((4, 3), 1e300),
            [[1, 2, 3], [4]],
        ),
        same=nearly(1e-5),
        cost=800,
        static=False,
    ),
    "time series with gaps": Row(
        modality=TimeSeries(rate=8.0, seconds=2.0, patch=4, allow_missing=True),
        values=([1.5, math.nan, 3.0, math.nan], np.where(np.arange(16) % 3, 0.25, np.nan)),
        bad=(np.zeros((4, 2)), [math.inf], np.zeros((2, 2, 1))),
        same=lambda raw, back: np.array_equal(raw, back[:, 0], equal_nan=True),
        cost=1000,
        static=False,
    ),
    "table": Row(
        modality=Table(
            columns={
                "age": Bins(num=100),
                "sex": ("f", "m"),
                "pay": BinEdges(at=(0, 1, 10)),
                "heat": Bins(num=4, low=0, high=8),
            }
        ),
        values=(
            {},
            {"age": 41, "sex": "m", "pay": 5.5, "heat": 7.0},
            {"heat": 1.0, "age": None, "sex": "f", "pay": math.nan},
        ),
        bad=(
            7,
            "row",
            [{}],
            {"size": 1},
            {"age": 100},
            {"age": 1.5},
            {"heat": 8.1},
            {"sex": "x"},
            {"sex": 1},
            {"pay": "much"},
            {"pay": math.inf},
            {"age": b"7"},
            {"age": 10**400},
            {"age": [1]},
            {"heat": 1j},
        ),
        same=lambda raw, back: (
            back
            == {
                k: None if raw.get(k) != raw.get(k) else raw.get(k)
                for k in ("age", "sex", "pay", "heat")
            }
        ),
        cost=1200,
    ),
    "graph": Row(
        modality=Graph(classes=("C", "N", "O"), max_nodes=4, max_edges=5),
        values=(
            {"nodes": [], "edges": []},
            {"nodes": ["O", "C", "O"], "edges": [(0, 1), (1, 2)]},
            {"nodes": ["N", "C", "C", "O"], "edges": [(0, 0), (0, 1), (0, 2), (1, 3), (2, 3)]},
        ),
        bad=(
            "graph",
            {},
            {"edges": []},
            {"nodes": ["C"], "links": []},
            {"nodes": ["H"]},
            {"nodes": [3]},
            {"nodes": [-1]},
            {"nodes": [True]},
            {"nodes": "C"},
            {"nodes": 3},
            {"nodes": ["C"], "edges": [(0, 1)]},
            {"nodes": ["C"], "edges": [(-1, 0)]},
            {"nodes": ["C"], "edges": [0, 0]},
            {"nodes": ["C"], "edges": [(0.0, 0.0)]},
            {"nodes": [], "edges": [(0, 0)]},
            {"nodes": ["C"], "edges": [(0, 0), (0,)]},
        ),
        same=lambda raw, back: raw == back,
        cost=2600,
        static=False,
    ),
    "actions": Row(
        modality=Actions(dims={"x": (-1.0, 1.0), "y": (0.0, 10.0), "grip": (0.0, 1.0)}, bins=64),
        values=(
            np.zeros((0, 3)),
            [[-1.0, 0.0, 1.0]],
            random.random((16, 3)).astype(np.float32),
        ),
        bad=(
            "left",
            np.zeros(3),
            np.zeros((2, 2)),
            np.full((1, 3), np.nan),
            [[-1.1, 0, 0]],
            np.full((1, 3), np.inf),
            {"acts": []},
            {"actions": [[0, 0, 0]], "mask": [1]},
            {"actions": [[0, 0, 0]], "mask": [True, False]},
        ),
        same=lambda raw, back: bool(
            back["mask"].all()
            and np.shape(raw) == back["actions"].shape
            and (np.abs(back["actions"] - raw) <= np.array([2, 10, 1]) / 128 + 1e-6).all()
        ),
        cost=700,
        static=False,
    ),
    "feature map": Row(
        modality=Features(channels=5, grid=(2, 3), mean=(0.5,), std=(1.0, 2, 3, 4, 5)),
        values=(random.normal(0, 2, (2, 3, 5)), random.normal(0, 2, (2, 3, 5)).astype(np.float16)),
        bad=(
            "map",
            np.zeros((3, 2, 5)),
            np.zeros((5, 5)),
            np.zeros((2, 3, 4)),
            np.zeros(30),
            np.full((2, 3, 5), np.inf),
            np.full((2, 3, 5), 1e300),
        ),
        same=nearly(1e-5),
        cost=1000,
    ),
    "feature list": Row(
        modality=Features(channels=5, max_tokens=7),
        values=(random.normal(0, 2, (2, 5)), random.normal(0, 2, (7, 5))),
        bad=(np.zeros((0, 5)), np.zeros(5), np.zeros((2, 4)), np.full((2, 5), np.nan)),
        same=nearly(1e-5),
        cost=800,
        static=False,
    ),
    "vector": Row(
        modality=Vector(channels=5, std=(3.0,)),
        values=(np.arange(5), random.normal(0, 2, (1, 5))),
        bad=("v", np.zeros(4), np.zeros((2, 5)), np.full(5, np.nan), [None] * 5),
        same=nearly(1e-5),
        cost=500,
    ),
    "camera": Row(
        modality=Camera(bins=501),
        values=(
            {},
            {"translation": (0, -10, 2.5)},
            {
                "focal": (1.25, 1.2),
                "centre": (0.5, 0.48),
                "rotation": (0.6, 0, -0.8, 0),
                "translation": np.array([1.0, 2.0, 3.0], np.float32),
            },
        ),
        bad=(
            7,
            [1],
            {"angle": 3},
            {"focal": 1},
            {"focal": (1, 5)},
            {"focal": ("a", "b")},
            {"centre": (0.5, 1.1)},
            {"rotation": (1, 1, 0, 0)},
            {"rotation": (0, 0, 0, 0)},
            {"rotation": 2 * np.eye(3)},
            {"rotation": np.diag([1, 1, -1])},
            {"rotation": np.full(4, np.nan)},
            {"translation": (0, 0, math.inf)},
            {"translation": (0, 0, 11)},
        ),
        same=lambda raw, back: (
            list(raw) == list(back)
            and all(np.abs(back[k] - np.asarray(v)).max() <= 0.02 + 1e-6 for k, v in raw.items())
        ),
        cost=2800,
        static=False,
    ),
    "points": Row(
        modality=Points(max_points=40, group=8),
        values=([], np.eye(3), random.uniform(-1, 1, (40, 3)).astype(np.float32)),
        bad=(
            "cloud",
            np.zeros(3),
            np.zeros((4, 4)),
            np.full((4, 3), np.nan),
            np.zeros((4, 3), bool),
            np.full((4, 3), np.inf),
            np.full((4, 3), 1.1),
            np.full((4, 3), 1e300),
        ),
        same=lambda raw, back: np.allclose(
            np.sort(np.reshape(raw, (-1, 3)), axis=0), np.sort(back, axis=0), atol=2e-6
        ),
        cost=3500,
        static=False,
    ),
    "points with colours": Row(
        modality=Points(channels=3, max_points=16, group=8, low=0.0, high=50.0, std=(255.0,)),
        values=(random.uniform(0, 50, (16, 6)), random.uniform(0, 50, (9, 6))),
        bad=(np.zeros((4, 3)), np.full((4, 6), -1.0), [[0, 0, 0, 0, 0, math.nan]]),
        same=lambda raw, back: np.allclose(np.sort(raw, axis=0), np.sort(back, axis=0), atol=1e-4),
        cost=2000,
    ),
    "imu": Row(
        modality=Imu(rate=50.0, seconds=0.8, patch=10),
        values=(
            random.normal(0, 9, (10, 6)),
            {
                "acceleration": np.full((160, 3), 9.8),
                "angular_velocity": np.full((160, 3), 9.8),
                "rate": 200.0,
            },
        ),
        bad=(
            "imu",
            np.zeros((9, 3)),
            np.zeros((0, 6)),
            np.full((9, 6), np.nan),
            np.full((9, 6), 1e300),
            {"acceleration": np.zeros((9, 3))},
            {"acceleration": np.zeros((9, 3)), "angular_velocity": np.zeros((8, 3))},
            {"acceleration": np.zeros(3), "angular_velocity": np.zeros(3)},
            {"acceleration": 0, "angular_velocity": 0},
            {"acceleration": np.zeros((9, 3)), "angular_velocity": np.zeros((9, 3)), "rate": 0},
            {"acceleration": np.zeros((9, 3)), "angular_velocity": np.zeros((9, 3)), "Hz": 1},
        ),
        same=lambda raw, back: nearly(1e-5)(9.8 if isinstance(raw, dict) else raw, back),
        cost=9500,
        static=False,
    ),
    "metadata": Row(
        modality=Metadata(
            schema={"value": Bins(num=100), "ink": Bins(num=4, low=0, high=8), "odd": Bins(num=2)}
        ),
        values=({}, {"odd": 1, "value": 0}, {"value": 63, "ink": 7.0, "odd": 1}),
        bad=(7, {"valve": 1}, {"value": 100}, {"ink": 8.1}, {"odd": 0.5}, {"ink": math.nan}),
        same=lambda raw, back: raw == back,
        cost=800,
        static=False,
    ),
    **{
        f"depth {mapping}": Row(
            modality=Depth(size=(8, 16), patch=4, mapping=mapping),
            values=(FAR, FAR.astype(np.float64) / 2, np.full((8, 16), 100.0)),
            bad=(HOLES, -FAR, 0 * FAR, FAR[0], np.zeros((8, 16, 3)), np.zeros((8, 16), int), "far"),
            same=metres,
            cost=1200,
        )
        for mapping in ("linear", "log", "inverse")
    },
    "depth with holes": Row(
        modality=Depth(size=(8, 16), patch=4, missing=True),
        values=(FAR, HOLES, np.zeros((8, 16), np.float32)),
        bad=(-FAR, FAR[0], np.zeros((0, 4)), [[1.0], [1.0, 2.0]], b"depth", b"\x93NUMPY\1"),
        same=metres,
        cost=1200,
    ),
    "bands": Row(
        modality=Bands(
            size=(8, 16), patch=4, bands=3, low=(-20.0, 0.0, 5.0), high=(60.0, 1.0, 6.0)
        ),
        values=(BANDS, BANDS[::-1], BANDS.astype(np.float64)),
        bad=(BANDS * np.nan, BANDS[..., :2], BANDS[0], "warm", b"warm", b"\x93NUMPY\1"),
        same=nearly(1e-4),
        cost=1000,
    ),
    "bands with holes": Row(
        modality=Bands(size=(8, 16), patch=4, low=(-10.0,), high=(10.0,), missing=True),
        values=(MOVES[..., 0], LOST[..., 0], LOST[..., :1]),
        bad=(MOVES, MOVES[0, 0], np.zeros((0, 4)), [[1.0], [1.0, 2.0]]),
        same=lambda raw, back: np.allclose(
            np.reshape(raw, back.shape), back, atol=1e-4, equal_nan=True
        ),
        cost=1000,
    ),
    "normals": Row(
        modality=Normals(size=(8, 16), patch=4),
        values=(UNIT, UNIT[::-1], 0 * UNIT),
        bad=(2 * UNIT, UNIT * np.nan, UNIT[..., :2], UNIT[0], UNIT.astype(int), "up", b"up"),
        same=nearly(1e-6),
        cost=1000,
    ),
    "segmentation": Row(
        modality=Segmentation(names=("wall", "floor", "door"), size=(8, 16), cell=1),
        values=(
            random.integers(0, 3, (8, 16)),
            random.choice([0, 1, 2, 255], (8, 16)).astype(np.uint8),
            np.full((8, 16), 255.0),
        ),
        bad=(
            np.full((8, 16), 3),
            np.full((8, 16), -1),
            np.full((8, 16), 0.5),
            np.full((8, 16), np.nan),
            *(np.zeros(8), np.zeros((8, 16, 3)), "wall", b"wall", [[0], [0, 1]]),
        ),
        same=equal,
        cost=600,
    ),
    "segmentation in cells": Row(
        modality=Segmentation(names=("wall", "floor"), size=(8, 16), cell=4, ignore=-1),
        values=tuple(random.integers(0, 2, (2, 4)).repeat(4, 0).repeat(4, 1) for _ in range(3)),
        bad=(np.full((8, 16), 255), np.full((8, 16), 2), np.zeros((8, 16, 3))),
        same=equal,
        cost=1600,
    ),
    "instances": Row(
        modality=Instances(size=(8, 16), cell=2, max_instances=3),
        values=(
            np.zeros((8, 16), np.int64),
            np.array([[1, 0, 2, 2], [0, 3, 0, 2]], np.uint16).repeat(4, 0).repeat(4, 1),
            np.ones((8, 16), bool),
        ),
        bad=(np.full((8, 16), -1), np.full((8, 16), 0.5), np.full((8, 16), np.inf), "one", b"one"),
        same=equal,
        cost=1700,
    ),
    "edges": Row(
        modality=Edges(size=(8, 16), cell=2),
        values=(
            random.random((8, 16)) < 0.3,
            random.integers(0, 2, (8, 16)),
            random.integers(0, 2, (8, 16)).astype(np.float64),
        ),
        bad=(
            np.full((8, 16), 2),
            np.full((8, 16), 7, np.uint8),
            np.full((8, 16), -0.5),
            np.full((8, 16), np.nan),
            *(np.zeros(8), np.zeros((8, 16, 3)), "edge", b"edge"),
        ),
        same=equal,
        cost=900,
    ),
    "flow": Row(
        modality=Flow(size=(8, 16), patch=4, limit=8),
        values=(MOVES, MOVES.astype(np.float64), 0 * MOVES),
        bad=(LOST, MOVES * np.inf, MOVES[..., :1], MOVES[0], MOVES.astype(int), "left", b"PIEH"),
        same=nearly(1e-5),
        cost=900,
    ),
    "flow with holes": Row(
        modality=Flow(size=(8, 16), patch=4, limit=8, missing=True),
        values=(MOVES, LOST, MOVES * np.nan),
        bad=(MOVES[..., :1], MOVES.astype(int), b"left"),
        same=lambda raw, back: np.allclose(raw, back, atol=1e-5, equal_nan=True),
        cost=900,
    ),
    "events": Row(
        modality=Events(size=(8, 16), patch=4, most=31),
        values=(COUNTS, COUNTS.astype(np.float32), 0 * COUNTS),
        bad=(
            *(-COUNTS, COUNTS / 2, COUNTS * np.nan, COUNTS[..., :1], COUNTS[0], "events", b"x"),
            [[16, 0, 0, 1]],
            [[0, -1, 0, 1]],
            [[0, 0, np.nan, 1]],
            [[0, 0, 0, 2]],
        ),
        same=equal,
        cost=1200,
    ),
    "video": Row(
        modality=Video(num_frames=4, frames=2, size=(8, 16), patch=4, mean=(0.3,), std=(0.4,)),
        values=(
            random.random((4, 8, 16, 3)).astype(np.float32),
            np.ones((4, 8, 16, 3)),
            list(random.random((4, 8, 16, 3)).astype(np.float32)),
        ),
        bad=(
            np.full((4, 8, 16, 3), np.nan),
            np.full((4, 8, 16, 3), 200.0),
            np.zeros((4, 8, 16, 3), int),
            np.zeros((4, 8, 16, 4)),
            *(np.zeros((8, 16, 3)), np.zeros((0, 8, 16, 3)), [], "film", b"GIF89a"),
            [np.zeros((8, 16, 3)), np.zeros((8, 8, 3))],
        ),
        same=nearly(1e-6),
        cost=3300,
    ),
}


def ready(row: Row, folder: Path) -> Row:
    """The row with a modality whose tokenizers are trained."""
    if isinstance(row.modality, Codes):
        path = toy_codes.write(folder / "run")
        row = dataclasses.replace(row, modality=dataclasses.replace(row.modality, path=path))
    return dataclasses.replace(row, modality=row.modality.fit(lambda: iter(WORDS), folder))


@pytest.fixture(params=ROWS)
def row(request, tmp_path) -> Row:
    return ready(ROWS[request.param], tmp_path)


def test_encode_and_decode_are_inverse(row):
    for value in row.values:
        piece = row.modality.encode(value)
        assert piece is not None
        assert row.same(value, row.modality.decode(piece)), value


def test_pieces_keep_the_shapes_and_types_of_the_spec(row):
    spec = row.modality.spec("name")
    assert spec.name == "name"
    for value in row.values:
        piece = row.modality.encode(value)
        assert piece.position_LA.shape == (piece.length, NUM_AXES)
        assert piece.position_LA.dtype == np.float32
        assert piece.length == spec.max_tokens if row.static else piece.length >= 1
        assert piece.length <= spec.max_tokens
        assert piece.num_cut == 0
        assert (piece.ids_L is None) != (piece.values_LP is None)
        if spec.vocab_size:
            assert piece.ids_L.shape == (piece.length,)
            assert piece.ids_L.dtype == np.int32
            assert piece.ids_L.min() >= 0
            assert piece.ids_L.max() < spec.vocab_size
        else:
            assert piece.values_LP.shape == (piece.length, spec.width)
            assert piece.values_LP.dtype == np.float32
            assert np.isfinite(piece.values_LP).all()


def test_what_calls_itself_finite_refuses_nan(row):
    if not row.modality.is_finite:
        return  # its pieces are looked through
    for value in row.values:
        assert np.isfinite(row.modality.encode(value).position_LA).all()
        if isinstance(value, np.ndarray):
            poisoned = value.astype(np.float32)
            poisoned.flat[0] = np.nan
            with pytest.raises(ValueError, match="NaN"):
                row.modality.encode(poisoned)


def test_training_sees_other_looks_of_what_is_augmented_and_of_nothing_else(row):
    for value in row.values:
        piece = row.modality.encode(value)
        first, again, other = (
            row.modality.augment(piece, np.random.default_rng(seed)) for seed in (1, 1, 2)
        )
        if not row.modality.is_augmented:
            for found, given in zip(first[:3], piece[:3], strict=True):
                assert (found is None) == (given is None)
                assert given is None or np.allclose(found, given, atol=1e-6)
            continue
        assert not np.array_equal(first.values_LP, other.values_LP)
        assert not np.array_equal(first.values_LP, piece.values_LP)
        np.testing.assert_array_equal(first.values_LP, again.values_LP)
        np.testing.assert_array_equal(piece.values_LP, row.modality.encode(value).values_LP)
        np.testing.assert_array_equal(first.position_LA, piece.position_LA)
        assert first.values_LP.shape == piece.values_LP.shape
        assert first.values_LP.dtype == np.float32
        assert np.isfinite(first.values_LP).all()


def test_positions_run_over_the_grid(row):
    spec = row.modality.spec("name")
    piece = row.modality.encode(row.values[-1])
    if spec.kind == "set":  # its tokens have places, but no order
        assert len(np.unique(piece.position_LA, axis=0)) == piece.length
        return
    if spec.grid is None:
        expected = np.arange(piece.length)[:, None].repeat(NUM_AXES, 1)
    else:
        expected = np.stack(np.meshgrid(*map(np.arange, spec.grid), indexing="ij"), -1)
    np.testing.assert_array_equal(piece.position_LA, expected.reshape(-1, NUM_AXES))


def test_every_id_decodes(row):
    spec = row.modality.spec("name")
    piece, known = (
        row.modality.encode(row.values[0]),
        row.modality.decode(row.modality.encode(row.values[0])),
    )
    for value in range(spec.vocab_size):
        ids_L = np.full(spec.max_tokens if row.static else 1, value)
        assert type(row.modality.decode(piece._replace(ids_L=ids_L))) is type(known)


def test_absent_is_none(row):
    assert row.modality.encode(None) is None


def test_bad_values_are_told_by_class_and_remedy(row):
    said_by = {Text: "(Text|SentencePiece)", Codes: "Image"}  # the part that looks at the value
    name = said_by.get(type(row.modality), type(row.modality).__name__)
    for value in row.bad:
        with pytest.raises(ValueError, match=rf"^{name}: .*(give|repair|divide|convert)"):
            row.modality.encode(value)


def test_encoding_leaves_the_value_alone_and_repeats_exactly(row):
    for value in row.values:
        kept = pickle.dumps(value)
        first, second = row.modality.encode(value), row.modality.encode(value)
        assert pickle.dumps(value) == kept
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_pickle_encodes_alike_before_and_after_use(row):
    value = row.values[-1]
    unused = pickle.loads(pickle.dumps(row.modality))
    expected = row.modality.encode(value)
    used = pickle.loads(pickle.dumps(row.modality))
    for copy in (unused, used):
        assert copy == row.modality
        assert copy.spec("name") == row.modality.spec("name")
        for a, b in zip(copy.encode(value), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_encoding_runs_few_bytecodes(row):
    """A count, which a busy machine does not move; `benchmarks/modalities.py` takes the time."""
    for value in row.values:
        row.modality.encode(value)  # tables are made, and what is traced
        found = bytecodes(row.modality.encode, value)
        assert found <= row.cost, f"{found} bytecodes"


def bytecodes(function: Callable[..., Any], *arguments: Any) -> int:
    """How many bytecodes of Python a call runs."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
    return count
