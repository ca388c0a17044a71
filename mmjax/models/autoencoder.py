"""Autoencoder: the model of a learned tokenizer, from pieces to codes and back.

Trained like any other model, by tasks with the objective `Reconstruction`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

from etils import epy

from mmjax.config import ranges
from mmjax.models.config import ModelConfig
from mmjax.models.critic import Critic
from mmjax.models.flow_decoder import FlowDecoder
from mmjax.models.quantizer import Quantizer
from mmjax.models.scalar_quantizers import FSQ
from mmjax.typing import TokenSpec, Vocabulary

with epy.lazy_imports():
    import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder(ModelConfig):
    """An encoder, a quantiser and a decoder for one grid stream.

    The pieces of the stream are put together to one array (rows, columns, channels), of a video
    (frames, rows, columns, channels); a strided convolution makes one vector a code, layers let
    codes see one another, and the decoder mirrors this. A layer is a residual block of
    convolutions, which see their neighbours, or, with `num_heads`, the block of the transformer, in
    which each code sees all (ViT-VQGAN, Yu et al. 2021, arXiv 2110.04627). With a `code_grid` of
    (1, 1) it is a residual network of matrices, for vectors. With `strides` stages of strided
    convolutions lead to the code grid and back, for waveforms (models/waveform_codec.py).

    Fields:
      piece: (rows, columns, channels) of a piece: (patch, patch, channels) of an `Image`,
        (patch_frames, 1, num_mels) of an `Audio`, (patch, 1, 1) of a `Waveform`, (1, 1, ids) of a
        grid of ids, such as classes, (1, 1, channels) of a vector, (frames, patch, patch, channels)
        of a `Video`.
      code_grid: rows and columns of codes; divides the array. (times, rows, columns) of a `Video`,
        for one codebook.
      width: of features at the code grid.
      encoder_layers, decoder_layers: how many. kernel: side of their convolutions, odd.
      num_heads: heads of attention, which divide the width; 0 = convolutions.
      expansion: inner width of a layer, in widths.
      strides: of the stages along time, from the samples on; their product divides the samples of
        a code, of which those that are left are the channels of the first stage. Each stage doubles
        the width, up to `width`. () = one stride to the code grid.
      quantizer: what a code is.
      critic: tells given from decoded values, for `Reconstruction(adversarial=...)` and the task of
        its `Adversary`. A tokenizer is written without it.
      flow: decodes the codes in place of the decoder, once `FlowMatching` has trained it.
    """

    piece: tuple[ranges.Count, ...] = (16, 16, 3)
    code_grid: tuple[ranges.Count, ...] = (14, 14)
    width: ranges.Count = 128
    encoder_layers: ranges.Natural = 2
    decoder_layers: ranges.Natural = 2
    kernel: ranges.Count = 3
    num_heads: ranges.Natural = 0
    expansion: ranges.Count = 2
    strides: tuple[Annotated[int, ranges.Range(2)], ...] = dataclasses.field(
        default=(), metadata={"is_new": True}
    )
    quantizer: Quantizer = FSQ()
    critic: Critic | None = dataclasses.field(default=None, metadata={"is_new": True})
    flow: FlowDecoder | None = dataclasses.field(default=None, metadata={"is_new": True})

    def __post_init__(self):
        ranges.check(self)
        if len(self.code_grid) not in (2, 3) or len(self.piece) != len(self.code_grid) + 1:
            raise ValueError(
                f"Autoencoder: piece={self.piece} and code_grid={self.code_grid} are of no array;"
                " use (rows, columns, channels) and (rows, columns), with time before both of them"
                " for a video."
            )
        if len(self.code_grid) == 3 and self.quantizer.num_codebooks > 1:
            raise ValueError(
                f"Autoencoder: code_grid={self.code_grid} takes all axes of a stream of codes, and"
                f" {type(self.quantizer).__name__} has {self.quantizer.num_codebooks} codebooks;"
                " use a quantizer with one, such as FSQ."
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"Autoencoder: kernel={self.kernel} must be odd, such as 3.")
        widths = {"width": self.width} | ({"flow.width": self.flow.width} if self.flow else {})
        for name, width in widths.items():
            if self.num_heads and width % self.num_heads:
                raise ValueError(
                    f"Autoencoder: num_heads={self.num_heads} does not divide {name}={width}; use a"
                    " divisor."
                )
        if self.width % 2 ** len(self.strides):
            raise ValueError(
                f"Autoencoder: width={self.width} cannot be halved for each of the"
                f" {len(self.strides)} strides={self.strides}; use a multiple of"
                f" {2 ** len(self.strides)}."
            )

    def parts(self) -> dict[str, Any]:
        """Optional parts that it has, by name."""
        parts = {"critic": self.critic, "flow": self.flow}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def num_cells(self) -> int:
        """Places of the code grid, each with an id of every codebook."""
        return math.prod(self.code_grid)

    @property
    def num_tokens(self) -> int:
        """Ids of one value."""
        return self.num_cells * self.quantizer.num_codebooks

    def array_shape(self, spec: TokenSpec) -> tuple[int, ...]:
        """(rows, columns, channels) of the array that the pieces of a stream make, with frames
        before the rows of a video.

        Raises ValueError where stream, pieces and code grid do not fit.
        """
        grid = self._grid(spec)
        *sizes, channels = self.piece
        if spec.vocab_size and self.piece != (1, 1, spec.vocab_size):
            raise ValueError(
                f"Autoencoder: piece={self.piece}, but a token of stream {spec.name!r} is one of"
                f" {spec.vocab_size} ids; use (1, 1, {spec.vocab_size})."
            )
        if not spec.vocab_size and math.prod(self.piece) != spec.width:
            raise ValueError(
                f"Autoencoder: piece={self.piece} has {math.prod(self.piece)} values, but those of"
                f" stream {spec.name!r} have {spec.width}; use (patch, patch, channels) of an Image"
                " and (patch_frames, 1, num_mels) of an Audio."
            )
        array = tuple(many * size for many, size in zip(grid, sizes, strict=True))
        if any(size % codes for size, codes in zip(array, self.code_grid, strict=True)):
            raise ValueError(
                f"Autoencoder: code_grid={self.code_grid} does not divide the"
                f" {' x '.join(map(str, array))} array of stream {spec.name!r}; use divisors."
            )
        samples, beside = array[0] // self.code_grid[0], math.prod(array[1:])
        if self.strides and (beside > 1 or samples % math.prod(self.strides)):
            raise ValueError(
                f"Autoencoder: strides={self.strides} do not divide the {samples} samples of a code"
                f" of stream {spec.name!r}, {beside} of them side by side; they are for streams"
                " along time, and their product divides the samples of a code."
            )
        return *array, channels

    def _grid(self, spec: TokenSpec) -> tuple[int, ...]:
        """Pieces of a stream along the axes of the array."""
        grid = (1, 1, 1) if spec.kind == "vector" else spec.grid
        if grid is not None and len(self.code_grid) == 3:
            return grid
        if grid is None or (grid[0] > 1 and grid[1] > 1):
            raise ValueError(
                f"Autoencoder: stream {spec.name!r} is no grid along at most two axes; give the"
                " patches of an image or of a spectrogram, or a map of classes; of a video (frames,"
                " rows, columns, channels) as the piece, and a code_grid (times, rows, columns)."
            )
        return grid[0] * grid[1], grid[2]

    def check_task(self, task):
        from mmjax.models import optional_parts

        optional_parts.check(task, self.parts())

    def make(self, vocabulary: Vocabulary, heads, seed: int):
        """The NNX module; the vocabulary holds the one stream that it is for."""
        from mmjax.models import convolution

        del heads
        if len(vocabulary.specs) != 1:
            names = ", ".join(s.name for s in vocabulary.specs)
            raise ValueError(
                f"Autoencoder: modalities are {names}; a tokenizer is for one, train each by a run"
                " of its own."
            )
        return convolution.AutoencoderModule(self, vocabulary.specs[0], seed)

    @property
    def state_is_learned(self):
        return True

    def update_state(self, model_state, record):
        """The codebook, from the statistics in the record."""
        prefix = "codebook/"
        found = {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}
        state = jax.tree.map(lambda x: x, model_state)
        if found:
            for name, value in self.quantizer.update(dict(state["codebook"]), found).items():
                state["codebook"][name] = value
        return state
