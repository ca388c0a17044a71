"""CPU microseconds of each augmentation a visit, and of encoding the same file, medians.

python benchmarks/augment.py
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time

import numpy as np
import PIL.Image
import soundfile

from mmjax.data.pictures import Pictures
from mmjax.data.sounds import Sounds
from mmjax.data.texts import Texts
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text

ALL = Pictures(flip=0.5, shift=0.1, rotation=10.0, hue=0.1, grey=0.1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for size in (64, 224):
        image = Image(size=(size, size), patch=size // 8)
        for side in (64, 200, 500):
            value = jpeg(rng, side)
            for name, augment in (("Pictures()", Pictures()), ("all of Pictures", ALL)):
                report(f"{name}, {side} to {size} pixels", augment, value, image, args.rounds)
    clip = io.BytesIO()
    soundfile.write(clip, rng.normal(0, 0.1, 5 * 16000), 16000, format="WAV")
    report("Sounds(), 5 s", Sounds(), clip.getvalue(), Audio(seconds=5.0), args.rounds)
    words = "a small red square beside the old green tree"
    with tempfile.TemporaryDirectory() as folder:
        text = Text().fit(lambda: [words], folder)
        report("Texts(), 9 words", Texts(), words, text, args.rounds)


def jpeg(rng, side: int) -> bytes:
    """A smooth picture, as photographs are."""
    small = PIL.Image.fromarray(rng.integers(0, 255, (side // 8, side // 8, 3)).astype(np.uint8))
    file = io.BytesIO()
    small.resize((side, side), PIL.Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def report(what: str, augment, value, modality, rounds: int) -> None:
    """A row of JSON."""
    kept = augment.prepare(value, modality)
    visit = lambda seed: augment(kept, modality, augment.generator("name", seed))
    row = {
        "what": what,
        "visit": median(visit, rounds),
        "prepare": median(lambda _: augment.prepare(value, modality), rounds),
        "encode": median(lambda _: modality.encode(value), rounds),
    }
    print(json.dumps(row), flush=True)


def median(call, rounds: int) -> int:
    """CPU microseconds of a call, which is given the number of its round."""
    call(0)
    seconds = []
    for number in range(rounds):
        began = time.process_time()
        call(number)
        seconds.append(time.process_time() - began)
    return round(1e6 * float(np.median(seconds)))


if __name__ == "__main__":
    main()
