"""mmjax's loader against bare grain and webdataset, in one process each, without workers.

    python benchmarks/data.py [--samples 4096] [--rounds 9] [--no-bars] [--out FILE]

The same JPEG pictures (64 x 64) with captions lie in tar shards and in ArrayRecord files. Every
contender gives shuffled batches of 64 with the same contents: patches (float32) and padded ids.
All call mmjax's own `Image.encode` and `Text.encode`, so the decoder is the same and the ratios
compare loaders; what mmjax's batches hold beyond that (positions, streams, slots, checks of each
record, any sample by number) is its own cost. The others stack arrays and no more, as one would
write by hand. Contents are compared over all samples before anything is timed.

Contenders are child processes that take turns. A turn is an epoch: reading starts and ends inside
it, so nothing that was read before is served from a buffer, and mmjax's memory of encoded samples
is off. Over ArrayRecord both read at most four batches ahead in a thread; over tar shards neither
has one. Files are in the page cache. Ratios are taken inside a round; the median over rounds, of
CPU time, is the result. Exit code 3: a bar is missed; never so with `--no-bars`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from turns import ROOT, Turns, quartiles

BATCH, SHARDS, AHEAD, LENGTH = 64, 8, 4, 32
WORDS = ("red", "green", "small", "large", "old", "new", "round", "square", "bird", "house", "tree")
BARS = {  # of CPU time; 0 = none, told beside
    ("mmjax_array_record", "grain"): 0.9,
    ("mmjax_tar", "webdataset"): 1.2,
    ("mmjax_tar", "webdataset_decode"): 0.0,
}

# Numbers, patches [B, L, P] and ids [B, LENGTH] of a batch.
Contents = tuple[np.ndarray, np.ndarray, np.ndarray]
Epoch = Callable[[int], Iterator[Contents]]


# ---- data


def examples(count: int) -> Iterator[dict[str, Any]]:
    """Pictures of coarse colours with some noise, of 2 kB each, and captions of 5 to 15 words."""
    import PIL.Image

    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        pixels = np.asarray(coarse.resize((64, 64), PIL.Image.Resampling.BICUBIC), np.float64)
        pixels = (pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=90)
        words = rng.choice(WORDS, rng.integers(5, 16))
        yield {"number": number, "image": file.getvalue(), "text": " ".join(words)}


def write(folder: Path, count: int) -> None:
    """Both formats, `SHARDS` files each; nothing when they are there."""
    import tarfile

    from mmjax.data.array_records import write_array_records

    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(examples(count))
    for shard in range(SHARDS):
        some = rows[shard * count // SHARDS : (shard + 1) * count // SHARDS]
        write_array_records(folder / f"{shard}.array_record", some)
        with tarfile.open(folder / f"{shard}.tar", "w") as file:
            for row in some:
                for field, content in (("jpg", row["image"]), ("txt", row["text"].encode())):
                    info = tarfile.TarInfo(f"{row['number']:06}.{field}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    modalities(folder, [row["text"] for row in rows])
    (folder / "done").write_text(str(count))


def modalities(folder: Path, texts: list[str] | None = None) -> dict[str, Any]:
    """What all contenders decode with."""
    from mmjax.modalities.image import Image
    from mmjax.modalities.text import Text
    from mmjax.tokenizers.sentencepiece import SentencePiece

    tokenizer = SentencePiece(vocab_size=512, num_sentinels=16)
    text = Text(tokenizer=tokenizer, max_tokens=LENGTH).fit(lambda: texts or [], folder / "text")
    return {"image": Image(size=(64, 64), patch=8), "text": text}


# ---- contenders: each opens its files and gives a function of the seed that reads an epoch


def of_mmjax(folder: Path, source: Any, ahead: int) -> Epoch:
    from mmjax.data import loader, mixture
    from mmjax.data.layouts import Aligned
    from mmjax.data.reader import Reader
    from mmjax.data.task import Task
    from mmjax.typing import Vocabulary

    known = modalities(folder)
    vocabulary = Vocabulary(tuple(m.spec(name) for name, m in known.items()))
    start = vocabulary.range("text")[0]
    task = Task(
        source=source, inputs=("image", "text"), layout=Aligned(), objective=None, batch_size=BATCH
    )
    reader = Reader(
        source=source, split="train", modalities=known, vocabulary=vocabulary, cache_bytes=0
    )

    class OneEpoch(loader.Batches):
        def __len__(self) -> int:
            return len(reader) // BATCH

    def epoch(seed: int) -> Iterator[Contents]:
        schedule = mixture.Mixture().bind({"pairs": task}, seed)
        batches = OneEpoch(schedule, mixture.Journal(), {"pairs": reader}, vocabulary, seed)
        stream = loader.Stream(batches, 0, prefetch=ahead)
        for _, batch, _ in stream:
            image, text = batch.views["image"], batch.views["text"]
            ids = np.where(text.stream_BL > 0, text.ids_BL - start, 0)
            yield batch.sample_BSI[:, 0, 0], image.values["image"].value_BJP, ids
        stream.close()

    return epoch


def of_mmjax_array_record(folder: Path) -> Epoch:
    from mmjax.data.array_records import ArrayRecords

    fields, path = {"image": "image", "text": "text"}, f"{folder}/*.array_record"
    return of_mmjax(folder, ArrayRecords(path=path, fields=fields, shares={"train": 1.0}), AHEAD)


def of_mmjax_tar(folder: Path) -> Epoch:
    from mmjax.data.webdataset import WebDataset

    fields, path = {"image": "jpg", "text": "txt"}, f"{folder}/*.tar"
    return of_mmjax(folder, WebDataset(path=path, fields=fields, shares={"train": 1.0}), 0)


def decoder(folder: Path) -> Callable[[int, bytes, bytes | str], Contents]:
    """One sample: its number, patches and padded ids."""
    known = modalities(folder)

    def decode(number: int, image: bytes, text: bytes | str) -> Contents:
        ids = np.zeros(LENGTH, np.int32)
        found = known["text"].encode(text).ids_L
        ids[: len(found)] = found
        return np.asarray(number), known["image"].encode(image).values_LP, ids

    return decode


def of_grain(folder: Path) -> Epoch:
    import grain

    from mmjax.data.array_records import decode_record

    decode = decoder(folder)
    paths = [str(folder / f"{shard}.array_record") for shard in range(SHARDS)]
    source = grain.sources.ArrayRecordDataSource(paths)

    def one(content: bytes) -> Contents:
        row = decode_record(content)
        return decode(row["number"], row["image"], row["text"])

    def epoch(seed: int) -> Iterator[Contents]:
        data = grain.MapDataset.source(source).shuffle(seed).map(one).batch(BATCH)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        yield from data.to_iter_dataset(options)

    return epoch


def of_webdataset(folder: Path, kind: str = "") -> Epoch:
    """With a `kind`, webdataset decodes the pictures itself (by Pillow), as its documentation does.

    Without one it hands on the bytes, as mmjax's sources do.
    """
    import webdataset as wds

    decode = decoder(folder)
    paths = [str(folder / f"{shard}.tar") for shard in range(SHARDS)]

    def one(row: dict[str, Any]) -> Contents:
        return decode(int(row["__key__"]), row["jpg"], row["txt"])

    def epoch(seed: int) -> Iterator[Contents]:
        data = wds.WebDataset(paths, shardshuffle=SHARDS, seed=seed).shuffle(1000)
        data = data.decode(kind) if kind else data
        return iter(data.map(one).batched(BATCH))

    return epoch


def of_memory(folder: Path) -> Epoch:
    """No loader at all: the decoder over bytes that are in memory."""
    decode, rows = decoder(folder), list(examples(int((folder / "done").read_text())))

    def epoch(seed: int) -> Iterator[Contents]:
        order = np.random.default_rng(seed).permutation(len(rows))
        for some in order.reshape(-1, BATCH):
            found = [decode(*(rows[i][key] for key in ("number", "image", "text"))) for i in some]
            yield tuple(np.stack(column) for column in zip(*found, strict=True))

    return epoch


# ---- measuring


def fingerprint(epoch: Epoch) -> str:
    """Hash of what an epoch holds, sample by sample, in whatever order they come."""
    found = []
    for batch in epoch(0):
        for number, patches, ids in zip(*batch, strict=True):
            digest = hashlib.sha256(patches.tobytes() + ids.astype(np.int32).tobytes()).hexdigest()
            found.append(f"{number} {digest}")
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()


OPEN = {
    "mmjax_array_record": of_mmjax_array_record,
    "grain": of_grain,
    "mmjax_tar": of_mmjax_tar,
    "webdataset": of_webdataset,
    "webdataset_decode": functools.partial(of_webdataset, kind="rgb8"),
    "memory": of_memory,
}


def child(contender: str, folder: Path) -> None:
    """Says what an epoch holds, then answers each seed on stdin with CPU and wall ms a batch."""
    epoch = OPEN[contender](folder)
    print(json.dumps(fingerprint(epoch)), flush=True)
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        count = sum(1 for _ in epoch(int(line)))
        spent = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps([1e3 * seconds / count for seconds in spent]), flush=True)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds a batch of each contender, round by round, and ratios of the pairs in BARS."""
    turns = Turns(__file__, {name: (name, str(folder)) for name in OPEN})
    held = turns.about
    if len(set(held.values())) > 1:
        raise SystemExit(f"The contenders differ in what an epoch holds: {held}.")
    rows = turns.run(rounds, lambda r: r + 1)
    found: dict[str, Any] = {"contents": held, "rounds": rows, "ratios": {}}
    for i, kind in enumerate(("cpu_ms", "wall_ms")):
        found[kind] = {n: statistics.median(row[i] for row in v) for n, v in rows.items()}
        for ours, theirs in BARS:
            pairs = zip(rows[ours], rows[theirs], strict=True)
            ratios = [b[i] / a[i] for a, b in pairs]  # speed is the inverse of time
            found["ratios"][f"{ours}/{theirs}/{kind[:-3]}"] = quartiles(ratios)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4096, help="a multiple of 64")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "benchmarks")
    parser.add_argument("--no-bars", action="store_true", help="tell the ratios, judge none")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return 0
    folder = args.folder / f"loader-{args.samples}"
    write(folder, args.samples)
    found = measure(folder, args.rounds) | {"machine": f"{os.cpu_count()} x {platform.machine()}"}
    for name in OPEN:
        cpu, wall = found["cpu_ms"][name], found["wall_ms"][name]
        print(
            f"{name}: {cpu:.2f} ms CPU, {wall:.2f} ms a batch, {1e3 * BATCH / wall:,.0f} samples/s"
        )
    good = True
    for (ours, theirs), bar in BARS.items():
        ratios = {kind: found["ratios"][f"{ours}/{theirs}/{kind}"] for kind in ("cpu", "wall")}
        said = (f"{kind} {b:.2f} ({a:.2f} to {c:.2f})" for kind, (a, b, c) in ratios.items())
        print(f"{ours} over {theirs}: {', '.join(said)}" + (f"; at least {bar}" if bar else ""))
        good &= ratios["cpu"][1] >= bar
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    return 0 if good or args.no_bars else 3


if __name__ == "__main__":
    sys.exit(main())
