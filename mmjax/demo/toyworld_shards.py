"""ToyWorld as files: tars of pictures, depth and captions, as a data set of one's own comes.

    python -m mmjax.demo.toyworld_shards --out runs/toyworld_shards

writes OUT/train/00000.tar ... and OUT/val/..., whose members are `000123.png`, `000123.depth.npy`
(metres) and `000123.txt`.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import console, files
from mmjax.demo.toyworld import ToyWorld

__all__ = ["write"]

STREAMS = ("image", "depth", "caption")


def write(out: Path, scenes: int = 4000, held_out: int = 400, each: int = 500) -> None:
    """Writes both splits; a tar that is there stays.

    Args:
      scenes, held_out: examples of train and of val. each: of a tar.
    """
    source = ToyWorld(
        streams=STREAMS, train_size=scenes, eval_size=held_out, levels=(2,), languages=("en",)
    )
    for split in ("train", "val"):
        records = source.open(split)
        bar = console.Progress(len(records), 0, True, name=split)
        for number, start in enumerate(range(0, len(records), each)):
            path = out / split / f"{number:05d}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            stop = min(start + each, len(records))
            if not path.exists():
                with files.replacing(path) as partial, tarfile.open(partial, "w") as tar:
                    for i in range(start, stop):
                        for name, content in _members(f"{i:06d}", records[i]):
                            member = tarfile.TarInfo(name)
                            member.size = len(content)
                            tar.addfile(member, io.BytesIO(content))
            bar.advance(stop)
        bar.close()


def _members(stem: str, example: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    import PIL.Image

    picture, depth = io.BytesIO(), io.BytesIO()
    PIL.Image.fromarray(example["image"]).save(picture, format="PNG")
    np.save(depth, example["depth"])
    yield f"{stem}.png", picture.getvalue()
    yield f"{stem}.depth.npy", depth.getvalue()
    yield f"{stem}.txt", example["caption"].encode()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Writes ToyWorld as tar files.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--scenes", type=int, default=4000, metavar="N", help="of train")
    parser.add_argument("--held-out", type=int, default=400, metavar="N", help="scenes of val")
    given = parser.parse_args()
    if given.scenes < 1 or given.held_out < 1:
        parser.error("--scenes and --held-out must be 1 or more")
    write(given.out, given.scenes, given.held_out)


if __name__ == "__main__":
    main()
