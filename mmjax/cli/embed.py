"""`mmjax embed`: embeddings of any modality, as a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax import files
from mmjax.cli import options
from mmjax.config.error import ConfigError

__all__ = ["parser", "run", "write"]


def parser() -> options.Parser:
    """The command line."""
    usage = f"PATH --given MODALITY=VALUE ... --out FILE {options.CODE_USAGE}"
    text = "Embeds images, sounds and text in the shared space."
    made = options.parser("embed", usage, text)
    options.add_path(made)
    options.add_given(made)
    made.add_argument("--out", required=True, metavar="FILE", help=".npy or .parquet")
    options.add_code(made)
    return made


def run(args: list[str]) -> None:
    """Embeddings of any modality in the shared space."""
    given = parser().parse_args(args)
    out = files.given(given.out)
    if out.suffix not in (".npy", ".parquet"):
        raise ConfigError(f"--out {given.out}: {out.suffix!r} must be .npy or .parquet.")
    rows = options.given(given.given)
    values = {m: [v for n, v in rows if n == m] for m, _ in rows}
    options.trust(given)
    from mmjax import evaluate

    embeddings = evaluate.embed(given.path, values, code=given.code)
    write(out, rows, embeddings)
    shape = " x ".join(map(str, next(iter(embeddings.values())).shape[1:]))
    print(f"{out}: {len(rows)} embeddings of width {shape}, in the order given")


def write(out: Any, rows: Sequence[tuple[str, str]], embeddings: dict[str, Any]) -> None:
    """Writes rows in the order of the command line; Parquet also has modality and value."""
    import numpy as np

    shapes = {m: np.shape(x)[1:] for m, x in embeddings.items()}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{m} {' x '.join(map(str, shape))}" for m, shape in shapes.items())
        raise ConfigError(
            f"--out {out}: embeddings differ in shape ({said}), as they are sets of vectors of"
            " tokens; write a file for each modality."
        )
    queues = {m: iter(np.asarray(x)) for m, x in embeddings.items()}
    array_NX = np.stack([next(queues[m]) for m, _ in rows]).astype(np.float32)
    files.make_folder(out.parent)
    if out.suffix == ".npy":
        with files.replacing(out) as partial, partial.open("wb") as file:
            np.save(file, array_NX)
        return
    import pyarrow
    from pyarrow import parquet

    columns = {
        "modality": [m for m, _ in rows],
        "given": [v for _, v in rows],
        "embedding": list(array_NX) if array_NX.ndim == 2 else array_NX.tolist(),
    }
    with files.replacing(out) as partial:
        parquet.write_table(pyarrow.table(columns), str(partial))
