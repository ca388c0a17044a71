"""Makes the speech pack: `python -m mmjax.demo.numbers_speech.make [FOLDER]`.

Needs espeak-ng on the PATH (Debian's package; no network) and scipy. Every clip is trimmed to its
sound, so that clips align at their first sample, and brought to one loudness. A voice is one Ogg
Opus file with a gap of silence between its clips; `index.json` says where each begins.
"""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from mmjax.demo import numbers

__all__ = ["Voice", "main", "speak"]

SAMPLE_RATE = 16000
RMS = 0.1  # of a clip: -20 dBFS
PEAK = 0.98
FRAME = 80  # samples of 5 ms, over which loudness is measured for trimming
SILENCE = 0.02  # of the loudest frame: what is quieter at either end is cut
GAP = 800  # samples between clips: Opus frames (20 ms) of one clip must not touch the next
COMPRESSION = 0.98  # of libsndfile's 0..1; about 11 kbit/s, the bandwidth stays 8 kHz


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voice:
    """How espeak-ng speaks: `code` is accent+variant; speed in words a minute."""

    name: str
    part: str  # train: known voice; val, test: only in the splits with new voices
    code: str
    pitch: int
    speed: int


# Voices of val and test are new speakers of accents that other voices speak in train.
VOICES = (
    Voice(name="adam", part="train", code="en-us+m3", pitch=40, speed=200),
    Voice(name="bella", part="train", code="en-gb-x-rp+f3", pitch=55, speed=190),
    Voice(name="clyde", part="train", code="en-gb-scotland+m7", pitch=50, speed=210),
    Voice(name="dora", part="train", code="en-029+f2", pitch=60, speed=200),
    Voice(name="edith", part="train", code="en-us-nyc+f4", pitch=45, speed=215),
    Voice(name="frank", part="train", code="en-gb-x-gbcwmd+m1", pitch=30, speed=195),
    Voice(name="jack", part="train", code="en-gb+m2", pitch=42, speed=190),
    Voice(name="kate", part="train", code="en-gb-x-gbclan+f3", pitch=52, speed=205),
    Voice(name="leo", part="train", code="en-us+m6", pitch=38, speed=210),
    Voice(name="mona", part="train", code="en-us+f2", pitch=50, speed=195),
    Voice(name="nils", part="train", code="en-gb-x-rp+m4", pitch=46, speed=200),
    Voice(name="olga", part="train", code="en-gb-scotland+f4", pitch=56, speed=200),
    Voice(name="quinn", part="train", code="en-gb-x-gbclan+m1", pitch=40, speed=195),
    Voice(name="grace", part="val", code="en-gb+f1", pitch=50, speed=205),
    Voice(name="hugh", part="test", code="en-gb-x-gbclan+m5", pitch=45, speed=200),
    Voice(name="iris", part="test", code="en-us+f5", pitch=58, speed=205),
)


def speak(voice: Voice, words: str) -> np.ndarray:
    """The words in a voice: float32 samples at 16 kHz, trimmed, at one loudness."""
    import soundfile
    from scipy import signal

    command = ["espeak-ng", "-v", voice.code, "-p", str(voice.pitch), "-s", str(voice.speed)]
    wav = subprocess.run([*command, "--stdout", words], check=True, capture_output=True).stdout
    # The header of a stream has no length; libsndfile wants one that fits.
    wav = wav[:40] + (len(wav) - 44).to_bytes(4, "little") + wav[44:]
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    divisor = np.gcd(rate, SAMPLE_RATE)
    samples = signal.resample_poly(samples, SAMPLE_RATE // divisor, rate // divisor)
    samples = _trim(samples.astype(np.float32))
    gain = min(RMS / np.sqrt(np.mean(samples**2)), PEAK / np.abs(samples).max())
    return (samples * gain).astype(np.float32)


def _trim(samples: np.ndarray) -> np.ndarray:
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    loudness = np.sqrt(np.mean(frames**2, axis=1))
    loud = np.flatnonzero(loudness > SILENCE * loudness.max())
    return samples[loud[0] * FRAME : (loud[-1] + 1) * FRAME]


def _write(voice: Voice, folder: Path) -> dict:
    import soundfile

    clips = [speak(voice, numbers.words(number, "en")) for number in range(100)]
    gap = np.zeros(GAP, np.float32)
    starts, lengths, parts, position = [], [], [], 0
    for clip in clips:
        parts += [gap, clip]
        starts.append(position + GAP)
        lengths.append(len(clip))
        position += GAP + len(clip)
    file = f"{voice.name}.ogg"
    soundfile.write(
        folder / file,
        np.concatenate([*parts, gap]),
        SAMPLE_RATE,
        format="OGG",
        subtype="OPUS",
        compression_level=COMPRESSION,
    )
    return {**dataclasses.asdict(voice), "file": file, "starts": starts, "lengths": lengths}


def main() -> None:
    """Writes the pack beside this file, or to the folder that is named."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    index = {"sample_rate": SAMPLE_RATE, "voices": [_write(voice, folder) for voice in VOICES]}
    (folder / "index.json").write_text(json.dumps(index, separators=(",", ":")) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".ogg", ".json"))
    longest = max(max(voice["lengths"]) for voice in index["voices"]) / SAMPLE_RATE
    print(f"{folder}: {size} bytes, longest clip {longest:.2f} s")


if __name__ == "__main__":
    main()
