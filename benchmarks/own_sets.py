"""Makes two sets of pictures, texts and sounds out of packages of Debian, to learn from.

    apt-get install abcm2ps abcmidi fluidsynth timgm6mb-soundfont librsvg2-bin espeak-ng \\
        openclipart-png
    python benchmarks/own_sets.py melodies OUT --train 1500 --val 300
    python benchmarks/own_sets.py clipart OUT --train 1500 --val 300

`melodies`: an engraved score, the same notes as ABC text, and their sound. Melodies of `val` are
not in `train`, and half are played by instruments that `train` has never heard. `clipart`: a
picture, its title, and the title spoken by one synthesiser; titles of `val` are not in `train`.
Folders `train` and `val` have 00001.png, 00001.txt and 00001.flac beside one another.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import soundfile

SOUNDFONT = "/usr/share/sounds/sf2/TimGM6mb.sf2"
CLIPART = "/usr/share/openclipart/png"
RATE, SECONDS, SIDE = 16_000, 4, 128
STRIP = (192, 48)  # pixels of a score
HEARD = (0, 6, 11, 24, 40, 56, 65, 73)  # programs of General MIDI: piano, harpsichord, ...
UNHEARD = (19, 42, 68, 71)  # organ, cello, oboe, clarinet
KEYS = ("C", "G", "D", "F", "Bb", "Am", "Em", "Dm")
NOTES = ["C", "D", "E", "F", "G", "A", "B", "c", "d", "e", "f", "g", "a", "b"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["melodies", "clipart"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--val", type=int, default=300)
    args = parser.parse_args()
    make = melodies if args.kind == "melodies" else clipart
    jobs = list(make(args.train, args.val))
    for split in ("train", "val"):
        (args.out / split).mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda job: job[0](args.out / job[1], *job[2:]), jobs)
        for number, _ in enumerate(made, 1):
            if number % 100 == 0 or number == len(jobs):
                print(f"{number} of {len(jobs)} records", flush=True)


def melodies(train: int, val: int):
    """(function, stem, arguments) of each melody."""
    rng, seen = np.random.default_rng(0), set()
    while len(seen) < train + val:
        key, meter = KEYS[rng.integers(len(KEYS))], ("4/4", "3/4")[rng.integers(2)]
        place, bars = int(rng.integers(3, 10)), []
        for _ in range(2):
            left, bar = 8 if meter == "4/4" else 6, []
            while left:
                length = int(rng.choice([n for n in (1, 2, 3, 4) if n <= left], size=1)[0])
                place = int(np.clip(place + rng.integers(-3, 4), 0, len(NOTES) - 1))
                bar.append(NOTES[place] + (str(length) if length > 1 else ""))
                left -= length
            bars.append(" ".join(bar))
        text = f"K:{key} M:{meter} | {' | '.join(bars)} |]"
        if text in seen:
            continue
        number, split = len(seen), "train" if len(seen) < train else "val"
        seen.add(text)
        unheard = split == "val" and number % 2
        programs = UNHEARD if unheard else HEARD
        tempo = int(rng.integers(100, 161))
        yield melody, f"{split}/{number:05d}", text, int(rng.choice(programs)), tempo


def melody(stem: Path, text: str, program: int, tempo: int) -> None:
    """Engraves and plays a melody."""
    head, _, body = text.partition(" | ")
    key, meter = (part[2:] for part in head.split())
    tune = f"X:1\nM:{meter}\nL:1/8\nQ:1/4={tempo}\nK:{key}\n%%MIDI program {program}\n{body}\n"
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        (at / "a.abc").write_text(tune)
        page = tune.replace(f"Q:1/4={tempo}\n", "")  # the page does not tell how fast it is played
        (at / "page.abc").write_text("%%pagewidth 12cm\n%%leftmargin 0\n%%rightmargin 0\n" + page)
        run("abcm2ps", "-q", "-g", "-O", at / "s.svg", at / "page.abc")
        svg = next(at.glob("s*.svg"))
        run("rsvg-convert", "-b", "white", "-w", 8 * SIDE, "-o", at / "s.png", svg)
        image = PIL.Image.open(at / "s.png").convert("L")
        fitted(image.crop(PIL.ImageOps.invert(image).getbbox()), STRIP).save(f"{stem}.png")
        run("abc2midi", at / "a.abc", "-o", at / "a.mid", "-silent")
        run("fluidsynth", "-ni", "-q", "-r", RATE, "-F", at / "a.wav", SOUNDFONT, at / "a.mid")
        samples, rate = soundfile.read(at / "a.wav", always_2d=True)
    write_sound(stem, samples.mean(1), rate)
    Path(f"{stem}.txt").write_text(text)


def clipart(train: int, val: int):
    """(function, stem, arguments) of each picture; a title occurs once."""
    titles: dict[str, Path] = {}
    for path in sorted(Path(CLIPART).rglob("*.png")):
        title = re.sub(r"[_\W]+|\d+", " ", path.stem).strip().lower()
        title = re.sub(r"\s+", " ", title)
        if 4 <= len(title) <= 40:
            titles.setdefault(title, path)
    rows = sorted(titles.items())
    order = np.random.default_rng(0).permutation(len(rows))[: train + val]
    if len(order) < train + val:
        raise SystemExit(f"{CLIPART} has {len(rows)} titles, not {train + val}")
    for number, row in enumerate(order):
        split = "train" if number < train else "val"
        yield picture, f"{split}/{number:05d}", *rows[row]


def picture(stem: Path, title: str, path: Path) -> None:
    """Scales a picture and has its title spoken."""
    image = PIL.Image.open(path).convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    fitted(PIL.Image.alpha_composite(white, image).convert("RGB"), (SIDE, SIDE)).save(f"{stem}.png")
    with tempfile.TemporaryDirectory() as folder:
        run("espeak-ng", "-w", f"{folder}/a.wav", title)
        samples, rate = soundfile.read(f"{folder}/a.wav", always_2d=True)
    write_sound(stem, samples.mean(1), rate)
    Path(f"{stem}.txt").write_text(title)


def fitted(image, size: tuple[int, int]):
    """The whole picture, as large as it may be, on white."""
    return PIL.ImageOps.pad(image, size, PIL.Image.Resampling.LANCZOS, color="white")


def write_sound(stem: Path, samples: np.ndarray, rate: int) -> None:
    """A FLAC file of at most `SECONDS`."""
    samples = samples[: SECONDS * rate]
    soundfile.write(f"{stem}.flac", samples / max(1e-6, np.abs(samples).max()) * 0.9, rate)


def run(*command) -> None:
    """Runs a program; its complaints are shown if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]}: {done.stderr or done.stdout}")


if __name__ == "__main__":
    main()
