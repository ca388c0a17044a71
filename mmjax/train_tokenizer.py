"""train_tokenizer(experiment, workdir): an ordinary run, then its artefact and what it is worth.

WORKDIR/tokenizer/{tokenizer.json, weights.safetensors, report.json}   reconstructions.png
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from etils import epath

from mmjax import config, console, files, train
from mmjax.config.code_file import Code
from mmjax.data import loader
from mmjax.data.source import BadRecord
from mmjax.errors import BadDataError
from mmjax.experiment import Experiment
from mmjax.modalities.codes import Codes
from mmjax.models import names
from mmjax.models.autoencoder import Autoencoder
from mmjax.parallel import distributed
from mmjax.run.view import to_host
from mmjax.tokenizers.learned import Learned
from mmjax.typing import Piece

COLLAPSED = 0.5  # usage below which the codes count as collapsed
SHOWN = 12  # originals over reconstructions
MAX_EXAMPLES = 2000  # of the evaluated split


def train_tokenizer(
    experiment: Experiment, workdir, *, code: Code = None, devices=None, before_compile=None
) -> dict[str, Any]:
    """Trains a tokenizer, or goes on where the workdir stopped; writes it to WORKDIR/tokenizer.

    Arguments are those of `train`. Returns the report: `usage` (share of the codes that the
    evaluated split uses), `dead`, `perplexity`, `mse` of decoded values, `variance` of the
    originals, fingerprints.

    Raises:
      ValueError: the model is no `Autoencoder`; and what `train` raises.
    """
    if not isinstance(experiment.model, Autoencoder) or len(experiment.modalities) != 1:
        raise ValueError(
            f"Experiment: model={type(experiment.model).__name__} with modalities"
            f" {', '.join(experiment.modalities)} is no tokenizer; use an Autoencoder and one"
            " modality, or mmjax train."
        )
    folder = files.given(workdir)
    result = train.train(
        experiment, workdir, code=code, devices=devices, before_compile=before_compile
    )
    params, state = result.state.params, result.state.model_state
    tensors = {name: to_host(x) for name, x in result.program.to_canonical(params).items()}
    for name, x in names.flatten(state).items():
        if name == "codebook/codes":  # the rest is of use to training alone
            tensors[name] = to_host(x)
    stream, modality = next(iter(experiment.modalities.items()))
    learned = Learned(
        preprocessing=config.to_json(modality),
        spec=modality.spec(stream),
        model=experiment.model,
        tensors=tensors,
        parent={
            "workdir": str(folder), "step": result.step, "config": config.fingerprint(experiment)
        },
    )  # fmt: skip
    if not distributed.is_main():
        return {}
    learned.write(folder / "tokenizer")
    codes = Codes(base=modality, path=str(folder)).fit(lambda: iter(()), folder / "tokenizer")
    report = evaluate(experiment, codes, learned, folder)
    files.write_json(folder / "tokenizer" / "report.json", report)
    if report["usage"] < COLLAPSED:
        console.say(
            f"warning: the codes have collapsed, only {100 * report['usage']:.0f} % of them are"
            " used; train longer, use fewer codes, or a VQ with a higher dead_threshold."
        )
    return report


def evaluate(
    experiment: Experiment, codes: Codes, learned: Learned, folder: epath.Path
) -> dict[str, Any]:
    """The report on the first examples of the eval split; draws `reconstructions.png`.

    Raises BadDataError when the split has no value, or more bad records than the guards allow.
    """
    pieces = _pieces(experiment)
    ids_NL = learned.encode(np.stack([piece.values_LP for piece in pieces]))  # type: ignore[arg-type]
    originals = np.stack([codes.base.decode(piece) for piece in pieces])
    decoded = np.stack(codes.decode_batch(ids_NL))
    count_K = np.bincount(ids_NL.ravel(), minlength=learned.vocab_size)
    count_QK = count_K.reshape(learned.model.quantizer.num_codebooks, -1)
    share_QK = count_QK / count_QK.sum(axis=1, keepdims=True)
    entropy_Q = -np.sum(share_QK * np.log(np.maximum(share_QK, 1e-12)), axis=1)
    _draw(originals[:SHOWN], decoded[:SHOWN], folder / "reconstructions.png")
    return {
        "split": experiment.data.eval_split,
        "examples": len(pieces),
        "codes": learned.vocab_size,
        "tokens": ids_NL.shape[1],
        "usage": float(np.mean(count_K > 0)),
        "dead": int(np.sum(count_K == 0)),
        "perplexity": float(np.exp(np.mean(entropy_Q))),
        "mse": float(np.mean(np.square(decoded - originals))),
        "variance": float(np.var(originals)),
        "fingerprints": learned.fingerprints,
    }


def _pieces(experiment: Experiment) -> list[Piece]:
    """Of the first examples of the eval split, without those that cannot be read."""
    split, modalities = experiment.data.eval_split, experiment.modalities
    vocabulary, allowed_bad = experiment.vocabulary(), experiment.guards.allowed_bad
    readers = loader.readers(experiment.tasks, modalities, vocabulary, split, allowed_bad)
    reader, (stream,), pieces = next(iter(readers.values())), modalities, []
    for i in range(min(len(reader), MAX_EXAMPLES)):
        with contextlib.suppress(BadRecord):
            pieces.append(reader.read(i, (stream,)).pieces[stream])
    pieces = [piece for piece in pieces if piece is not None]
    if not pieces:
        name = type(reader.source).__name__
        raise BadDataError(f"Source {name}: split {split!r} has no {stream!r}.")
    return pieces


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    if not report:
        return ""
    lost = report["mse"] / max(report["variance"], 1e-12)
    return "\n".join(
        [
            f"tokenizer    {report['fingerprints']['codes'][:12]}, decoder"
            f" {report['fingerprints']['decoder'][:12]}",
            f"codes        {report['codes']}, {report['tokens']} a value",
            f"usage        {100 * report['usage']:.1f} % on {report['examples']} examples of"
            f" {report['split']}, {report['dead']} dead",
            f"perplexity   {report['perplexity']:.0f}",
            f"error        {report['mse']:.4f} mean square, {100 * lost:.1f} % of the variance",
        ]
    )


def _draw(originals: np.ndarray, decoded: np.ndarray, path: epath.Path) -> None:
    """Originals over reconstructions, enlarged; what has two axes is a spectrogram."""
    import io

    import PIL.Image

    columns = [
        np.concatenate([_framed(_picture(one)), _framed(_picture(other))])
        for one, other in zip(originals, decoded, strict=True)
    ]
    pixels = np.concatenate(columns, axis=1)
    image = PIL.Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8))
    scale = max(1, 96 // (pixels.shape[0] // 2))
    image = image.resize((image.width * scale, image.height * scale), PIL.Image.Resampling.NEAREST)
    content = io.BytesIO()
    image.save(content, format="PNG")
    files.write_bytes(path, content.getvalue())


def _picture(value: np.ndarray) -> np.ndarray:
    """RGB in 0..1; of decibels (frames, bands) the loudest 50, low bands at the bottom."""
    if value.ndim == 2:
        value = np.maximum(1 + value.T[::-1, :, None] / 50, 0)
    if value.shape[2] not in (1, 3):
        value = value.mean(axis=2, keepdims=True)
    return np.broadcast_to(value, (*value.shape[:2], 3))


def _framed(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=0.5)
