"""train_tokenizer(experiment, workdir): an ordinary run, then its artefact and what it is worth.

WORKDIR/tokenizer/{tokenizer.json, weights.safetensors, report.json}   reconstructions.png
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from mmjax import config, console, files, train
from mmjax.config.code_file import Code
from mmjax.data import loader
from mmjax.data.source import BadRecord
from mmjax.errors import BadDataError
from mmjax.experiment import Experiment
from mmjax.modalities.codes import Codes, content
from mmjax.models import names
from mmjax.models.autoencoder import Autoencoder
from mmjax.models.optional_parts import reaches
from mmjax.parallel import distributed
from mmjax.report import reconstructions
from mmjax.run.program import Program
from mmjax.run.view import to_host
from mmjax.step import TrainState
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
    evaluated split uses), `dead`, `perplexity` (of several codebooks their geometric mean), `mse`
    of decoded values and `variance` of the originals, for pictures `psnr` and for samples of sounds
    `si_snr` in dB, for pictures and maps `detail` (mean square of the differences of neighbours, as
    a share of the originals'), or `accuracy` of decoded ids; the same of the `first_decoder` of a
    model with a flow; fingerprints.

    Raises:
      ValueError: the model is no `Autoencoder`, or its encoder is trained nowhere; and what `train`
        raises.
    """
    if not isinstance(experiment.model, Autoencoder) or len(experiment.modalities) != 1:
        raise ValueError(
            f"Experiment: model={type(experiment.model).__name__} with modalities"
            f" {', '.join(experiment.modalities)} is no tokenizer; use an Autoencoder and one"
            " modality, or mmjax train."
        )
    tasks = experiment.tasks.values()
    if not experiment.init and not any(reaches(t.trainable, "encoder") for t in tasks):
        raise ValueError(
            "Experiment: init='', but no task trains the encoder, so that its codes would be those"
            " of chance; set init to the workdir of the run that made the codes."
        )
    folder = files.given(workdir)
    result = train.train(
        experiment, workdir, code=code, devices=devices, before_compile=before_compile
    )
    parent = {
        "workdir": str(folder), "step": result.step, "config": config.fingerprint(experiment)
    }  # fmt: skip
    learned = exported(result.program, result.state, parent)
    if not distributed.is_main():
        return {}
    learned.write(folder / "tokenizer")
    ((_, modality),) = experiment.modalities.items()
    codes = Codes(base=modality, path=str(folder)).fit(lambda: iter(()), folder / "tokenizer")
    report = evaluate(experiment, codes, learned, folder)
    files.write_json(folder / "tokenizer" / "report.json", report)
    if report["usage"] < COLLAPSED:
        console.say(
            f"warning: the codes have collapsed, only {100 * report['usage']:.0f} % of them are"
            " used; train longer, use fewer codes, a VQ with a higher dead_threshold, or an LFQ of"
            " more diversity."
        )
    return report


def exported(program: Program, state: TrainState, parent: dict[str, Any]) -> Learned:
    """The tokenizer that a program of an `Autoencoder` has trained; `parent` says where."""
    params = program.to_canonical(state.params).items()
    tensors = {name: to_host(x) for name, x in params if not name.startswith("critic/")}
    for name, x in names.flatten(state.model_state).items():
        if name == "codebook/codes":  # the rest is of use to training alone
            tensors[name] = to_host(x)
    ((stream, modality),) = program.experiment.modalities.items()
    model: Any = program.experiment.model
    return Learned(
        preprocessing=config.to_json(modality),
        spec=modality.spec(stream),
        model=dataclasses.replace(model, critic=None),  # of use to training alone
        tensors=tensors,
        parent=parent,
    )


def evaluate(
    experiment: Experiment, codes: Codes, learned: Learned, folder: epath.Path
) -> dict[str, Any]:
    """The report on the first examples of the eval split; draws `reconstructions.png`.

    Raises BadDataError when the split has no value, or more bad records than the guards allow.
    """
    pieces = _pieces(experiment)
    given = np.stack([content(piece, learned.spec) for piece in pieces])
    ids_NL = learned.encode(given)
    originals, decoded = np.stack(codes.raw(given)), np.stack(codes.decode_batch(ids_NL))
    count_K = np.bincount(ids_NL.ravel(), minlength=learned.vocab_size)
    count_QK = count_K.reshape(learned.model.quantizer.num_codebooks, -1)
    share_QK = count_QK / count_QK.sum(axis=1, keepdims=True)
    entropy_Q = -np.sum(share_QK * np.log(np.maximum(share_QK, 1e-12)), axis=1)
    shown = reconstructions.drawn(originals[:SHOWN], decoded[:SHOWN], learned.is_over_time)
    files.write_bytes(folder / "reconstructions.png", shown)
    error = _errors(originals, decoded)
    if originals.ndim == 2 and learned.is_over_time:  # samples, followed by silence
        lengths = [np.size(codes.base.decode(piece)) for piece in pieces]
        error["si_snr"] = si_snr(originals, decoded, lengths)
    if learned.model.flow:
        model = dataclasses.replace(learned.model, flow=None)
        first = dataclasses.replace(learned, model=model).decode(ids_NL)
        error["first_decoder"] = _errors(originals, np.stack(codes.raw(first)))
    return {
        "split": experiment.data.eval_split,
        "examples": len(pieces),
        "codes": learned.vocab_size,
        "tokens": ids_NL.shape[1],
        "usage": float(np.mean(count_K > 0)),
        "dead": int(np.sum(count_K == 0)),
        "perplexity": float(np.exp(np.mean(entropy_Q))),
        **error,
        "fingerprints": learned.fingerprints,
    }


def si_snr(originals: np.ndarray, decoded: np.ndarray, lengths: Sequence[int]) -> float:
    """Scale-invariant ratio of signal and noise in dB (Le Roux et al. 2018, arXiv 1811.02508), mean
    over sounds [N, I] of so many samples; those of silence are left out."""
    found = []
    for one, other, length in zip(originals, decoded, lengths, strict=True):
        one, other = (x[:length] - np.mean(x[:length], dtype=np.float64) for x in (one, other))
        power = np.sum(np.square(one))
        if power > 0:
            target = np.sum(one * other) / power * one
            signal, noise = np.sum(np.square(target)), np.sum(np.square(other - target))
            found.append(10 * np.log10((signal + 1e-12 * power) / (noise + 1e-12 * power)))
    return float(np.mean(found)) if found else 0.0


def _errors(originals: np.ndarray, decoded: np.ndarray) -> dict[str, Any]:
    """Errors of decoded values; of maps and pictures also how much detail is left."""
    if originals.dtype.kind in "iu":
        return {"accuracy": float(np.mean(decoded == originals))}
    mse, variance = np.mean(np.square(decoded - originals)), np.var(originals)
    error = {"mse": float(mse), "variance": float(variance)}
    if originals.ndim > 2:
        detail = [np.mean(np.square(np.diff(x, axis=2))) for x in (decoded, originals)]
        error["detail"] = float(detail[0] / max(detail[1], 1e-12))
    if originals.ndim >= 4 and originals.min() >= 0 and originals.max() <= 1:  # pictures, videos
        error["psnr"] = float(-10 * np.log10(max(mse, 1e-10)))
    return error


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
    errors = [f"error        {_error_text(report)}"]
    if "first_decoder" in report:
        errors.append(f"  by the decoder before the flow: {_error_text(report['first_decoder'])}")
    return "\n".join(
        [
            f"tokenizer    {report['fingerprints']['codes'][:12]}, decoder"
            f" {report['fingerprints']['decoder'][:12]}",
            f"codes        {report['codes']}, {report['tokens']} a value",
            f"usage        {100 * report['usage']:.1f} % on {report['examples']} examples of"
            f" {report['split']}, {report['dead']} dead",
            f"perplexity   {report['perplexity']:.0f}",
            *errors,
        ]
    )


def _error_text(found: dict[str, Any]) -> str:
    if "accuracy" in found:
        return f"{100 * (1 - found['accuracy']):.2f} % of the ids are others"
    lost = found["mse"] / max(found["variance"], 1e-12)
    kinds = [("psnr", "PSNR"), ("si_snr", "SI-SNR")]
    decibels = "".join(f" ({found[k]:.1f} dB {name})" for k, name in kinds if k in found)
    detail = f"; detail {100 * found['detail']:.0f} %" if "detail" in found else ""
    return f"{found['mse']:.4f} mean square{decibels}, {100 * lost:.1f} % of the variance{detail}"
