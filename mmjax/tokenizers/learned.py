"""Learned codes on disk: an autoencoder exported from its run, with fingerprints.

    tokenizer.json       format, class, spec, preprocessing, model, fingerprints, parent run
    weights.safetensors  encoder/..., decoder/..., flow/..., codebook/codes

Two SHA-256 fingerprints: `codes` covers everything that ids depend on, `decoder` the rest, so that
the decoder can be improved without changing ids.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from mmjax import config, files
from mmjax.files import confined
from mmjax.typing import TokenSpec, Vocabulary

__all__ = ["Learned"]

FORMAT = 1
MANIFEST, WEIGHTS = "tokenizer.json", "weights.safetensors"
MAX_MANIFEST, MAX_WEIGHTS = 1 << 24, 1 << 33  # bytes of the files that are read
MAX_CODES = 1 << 24
# Fields of models that older tokenizers lack, with what these do: they keep their fingerprints.
LATER: dict[str, Any] = {
    "num_heads": 0, "symmetric": False, "gradient": "straight", "kmeans_steps": 0, "strides": [],
    "critic": None, "flow": None,
}  # fmt: skip
DECODERS = ("decoder/", "flow/")  # tensors that no id depends on
FREE = ("field", "max_pixels", "max_samples")
BATCH = 256  # values at a time; smaller batches are padded, so that only two shapes compile
ROOM = 1 << 22  # numbers at a time, where a value has many


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """An autoencoder with its weights: pieces to ids and back, on the default device.

    Fields:
      preprocessing: JSON of the modality that makes the pieces. spec: of its stream.
      model: the `Autoencoder`. tensors: by canonical name. parent: the run, for lineage.
    """

    preprocessing: dict[str, Any]
    spec: TokenSpec
    model: Any
    tensors: Mapping[str, np.ndarray]
    parent: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return self.model.quantizer.num_codes

    @property
    def levels(self) -> tuple[int, ...]:
        """Bases of the digits of an id, if the quantiser has digits."""
        return self.model.quantizer.digits

    @property
    def grid(self) -> tuple[int, int, int]:
        """(time, row, column) of the codes, of which several codebooks take the axis that is free:
        time, or the row if the pieces run over time."""
        if len(self.model.code_grid) == 3:
            return self.model.code_grid
        (rows, columns), codebooks = self.model.code_grid, self.model.quantizer.num_codebooks
        return (rows, codebooks, columns) if self.is_over_time else (codebooks, rows, columns)

    @property
    def is_over_time(self) -> bool:
        """Whether the pieces run over time alone, as those of sounds."""
        has_time = self.spec.grid is not None and self.spec.grid[0] > 1
        return has_time and len(self.model.code_grid) == 2

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """`codes` and `decoder`."""
        model = _without_later(config.short_names(config.to_json(self.model)))
        pieces = [self.spec.grid, self.spec.width]
        preprocessing = config.short_names(without_field(self.preprocessing))

        def digest(is_decoder: bool) -> str:
            other = ("encoder_layers",) if is_decoder else ("decoder_layers", "flow")
            fields = {k: v for k, v in model.items() if k not in (*other, "dtype")}
            parts = {"format": FORMAT, "model": fields, "pieces": pieces}
            parts["preprocessing"] = preprocessing
            text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
            hashed = hashlib.sha256(text.encode())
            for name in sorted(self.tensors):
                if name.startswith(DECODERS) == is_decoder:
                    array = np.ascontiguousarray(self.tensors[name], "<f4")
                    hashed.update(f"{name}{array.shape}".encode() + array.tobytes())
            return hashed.hexdigest()

        return {"codes": digest(False), "decoder": digest(True)}

    def encode(self, given: np.ndarray) -> np.ndarray:
        """Ids int32 [N, L] of pieces [N, J, P], or of ids [N, J], in the order of the grid."""
        dtype = np.int32 if self.spec.vocab_size else np.float32
        ids_NLQ = self._in_batches("codes", np.asarray(given, dtype))
        ids = ids_NLQ.reshape(len(ids_NLQ), *self.model.code_grid, ids_NLQ.shape[-1])
        if len(self.model.code_grid) == 2:  # of a video a place has one id
            ids = ids.transpose(0, 1, 3, 2) if self.is_over_time else ids.transpose(0, 3, 1, 2)
        return ids.reshape(len(ids), self.model.num_tokens)

    def decode(self, ids_NL: np.ndarray, seed: int = 0) -> np.ndarray:
        """Pieces float32 [N, J, P], or ids int32 [N, J], of codes [N, L]; `seed`: of the noise of
        a flow, which draws others with another.

        Raises ValueError for codes out of range.
        """
        ids_NL = np.asarray(ids_NL, np.int32)
        if ids_NL.ndim != 2 or ids_NL.shape[1] != self.model.num_tokens:
            raise ValueError(
                f"Learned: ids of shape {ids_NL.shape} are not of {self.model.num_tokens} codes a"
                " value; they belong to another tokenizer."
            )
        if ids_NL.size and not (ids_NL.min() >= 0 and ids_NL.max() < self.vocab_size):
            raise ValueError(
                f"Learned: ids {ids_NL.min()}..{ids_NL.max()} are outside 0..{self.vocab_size - 1};"
                " they belong to another tokenizer."
            )
        ids = ids_NL.reshape(len(ids_NL), *self.grid)
        if len(self.model.code_grid) == 2:
            ids = ids.transpose(0, 1, 3, 2) if self.is_over_time else ids.transpose(0, 2, 3, 1)
        codebooks = self.model.quantizer.num_codebooks
        ids = ids.reshape(-1, self.model.num_cells, codebooks)
        return self._in_batches("pieces", ids, np.uint32(seed))

    def _in_batches(self, name: str, x: np.ndarray, *more: Any) -> np.ndarray:
        run, parts = self._functions[name], []
        size = 1 if len(x) == 1 else max(1, min(BATCH, ROOM // self._numbers))
        for start in range(0, len(x), size):
            part = x[start : start + size]
            padded = np.zeros((size, *x.shape[1:]), x.dtype)
            padded[: len(part)] = part
            parts.append(np.asarray(run(self._arrays, padded, *more))[: len(part)])
        if not parts:
            return np.asarray(run(self._arrays, np.zeros((1, *x.shape[1:]), x.dtype), *more))[:0]
        return np.concatenate(parts)

    @property
    def _numbers(self) -> int:
        """Of a value, before and after it is coded."""
        return self.spec.max_tokens * (self.spec.width or self.spec.vocab_size)

    @functools.cached_property
    def _functions(self) -> dict[str, Any]:
        import jax
        from flax import nnx

        graph = self._split[0]

        def call(name):
            return jax.jit(lambda arrays, *x: getattr(nnx.merge(graph, *arrays), name)(*x))

        return {name: call(name) for name in ("codes", "pieces")}

    @functools.cached_property
    def _arrays(self) -> tuple[Any, Any]:
        """Parameters and state of the module; state that only training needs is zero."""
        import jax
        from jax.tree_util import tree_map_with_path

        from mmjax.models import names

        def find(path, leaf):
            array = self._tensor(names.path_name(path), leaf.shape)
            return jax.numpy.zeros(leaf.shape) if array is None else jax.numpy.asarray(array)

        return tuple(tree_map_with_path(find, tree) for tree in self._split[1:])  # type: ignore[return-value]

    @functools.cached_property
    def _split(self):
        from flax import nnx

        from mmjax.models import module

        make = functools.partial(self.model.make, Vocabulary((self.spec,)), {}, 0)
        graph, params, state = nnx.split(nnx.eval_shape(make), nnx.Param, module.ModelState)
        return graph, nnx.as_pure(params), nnx.as_pure(state)

    def __getstate__(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def write(self, folder: Any) -> None:
        """Writes the artefact, `tokenizer.json` last."""
        from safetensors import numpy as safetensors

        path = epath.Path(folder)
        files.make_folder(path)
        tensors = {n: np.ascontiguousarray(a, np.float32) for n, a in self.tensors.items()}
        manifest = {
            "format": FORMAT,
            "class": "Learned",
            "spec": dataclasses.asdict(self.spec),
            "preprocessing": config.short_names(self.preprocessing),
            "model": config.short_names(config.to_json(self.model)),
            "fingerprints": self.fingerprints,
            "vocab_size": self.vocab_size,
            "grid": self.grid,
            "parent": self.parent,
        }
        with files.replacing(path / WEIGHTS) as partial:
            partial.write_bytes(safetensors.save(tensors))
        with files.replacing(path / MANIFEST) as partial:
            partial.write_text(json.dumps(manifest, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Any) -> Learned:
        """Reads the artefact in a folder. Raises ValueError if it is damaged or not an artefact."""
        path = epath.Path(folder)
        try:
            manifest = json.loads(confined.read(path / MANIFEST, MAX_MANIFEST, path))
            learned, written = cls._parsed(path, manifest), manifest["fingerprints"]
            codes = str(written["codes"])[:12]
            have = learned.fingerprints
        except Exception as error:  # libraries may raise anything on broken content
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"Learned: {path} is no tokenizer that can be read ({reason}); train it again with"
                " mmjax train-tokenizer."
            ) from error
        if have != written:
            raise ValueError(
                f"Learned: {path} is damaged: its content has fingerprint {have['codes'][:12]}, but"
                f" tokenizer.json says {codes}; copy it again, or train it again."
            )
        return learned

    @classmethod
    def _parsed(cls, path: Any, manifest: dict[str, Any]) -> Learned:
        from safetensors import numpy as safetensors

        from mmjax.models.autoencoder import Autoencoder

        if manifest["format"] != FORMAT:
            raise ValueError(f"format={manifest['format']!r:.40}, this version reads {FORMAT}")
        if manifest["class"] != "Learned":
            raise ValueError(f"class={manifest['class']!r:.40}, not Learned")
        spec: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in manifest["spec"].items()
        }
        model = config.from_json(manifest["model"], config.seam_classes())
        if type(model) is not Autoencoder:
            raise ValueError(f"its model is a {type(model).__name__}, not an Autoencoder")
        if "class" not in dict(manifest["preprocessing"]):
            raise ValueError("its preprocessing is of no modality")
        content = confined.read(path / WEIGHTS, MAX_WEIGHTS, path)
        if int.from_bytes(content[:8], "little") > MAX_MANIFEST:
            raise ValueError(f"the header of {WEIGHTS} is too long")
        learned = cls(
            preprocessing=manifest["preprocessing"],
            spec=TokenSpec(**spec),
            model=model,
            tensors=safetensors.load(content),
            parent=dict(manifest["parent"]),
        )
        learned._check()
        return learned

    def _check(self) -> None:
        """Raises ValueError unless the tensors match the model."""
        layers = self.model.encoder_layers + self.model.decoder_layers
        layers += self.model.flow.layers if self.model.flow else 0
        if layers > len(self.tensors) or self.vocab_size > MAX_CODES:
            raise ValueError(
                f"{layers} layers and {self.vocab_size} codes are more than {len(self.tensors)}"
                " tensors hold"
            )
        for name, array in self.tensors.items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"tensor {name} ({array.dtype}) is not of finite float32 numbers")
        from jax.tree_util import tree_leaves_with_path

        from mmjax.models import names

        for tree in self._split[1:]:
            for place, leaf in tree_leaves_with_path(tree):
                self._tensor(names.path_name(place), leaf.shape)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """A tensor, or None if only training needs it. Raises ValueError for a wrong shape."""
        array = self.tensors.get(name)
        if array is None and name.startswith("codebook/") and name != "codebook/codes":
            return None
        if array is None or array.shape != shape:
            have = "is missing" if array is None else f"has shape {array.shape}"
            raise ValueError(f"Learned: tensor {name} {have}, not of shape {shape}.")
        return array


def without_field(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Preprocessing without fields that ids do not depend on: the field's name, and limits."""
    return {k: v for k, v in preprocessing.items() if k not in FREE}


def _without_later(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {k: _without_later(v) for k, v in tree.items() if k not in LATER or v != LATER[k]}
