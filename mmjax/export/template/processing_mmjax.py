"""Raw files or arrays of every stream to the inputs of `MMJaxModel`."""

import shutil
from pathlib import Path

from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from .preprocessing_mmjax import make, stack

HUB_OPTIONS = ("cache_dir", "force_download", "token", "revision", "local_files_only", "subfolder")


class MMJaxProcessor(ProcessorMixin):
    """`processor(image=["a.png"], audio=["b.wav"], text=["two words"])` -> tensors by stream.

    An image is a file, a Pillow image or an array (H, W[, C]) of uint8 or of floats in 0..1; a
    sound is a file or a waveform, at the model's sample rate unless `sampling_rate` says another; a
    text is a string.

    Args:
      streams: by name, the kind of its preprocessing and its fields.
    """

    def __init__(self, streams=None, **kwargs):
        super().__init__()
        self.streams = streams or {}
        self._encoders = {name: make(**fields) for name, fields in self.streams.items()}
        self._model_files = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Loads the preprocessing, and the sentencepiece models that lie beside it."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        for fields in processor.streams.values():
            if name := fields.get("model_file"):
                path = cached_file(pretrained_model_name_or_path, name, **options)
                processor._model_files[name] = path
        for encoder in processor._encoders.values():
            if hasattr(encoder, "load"):
                encoder.load(processor._model_files[encoder.model_file])
        return processor

    def save_pretrained(self, save_directory, **kwargs):
        """Writes the preprocessing and copies the sentencepiece models."""
        written = super().save_pretrained(save_directory, **kwargs)
        for name, path in self._model_files.items():
            if not (Path(save_directory) / name).exists():
                shutil.copy(path, Path(save_directory) / name)
        return written

    def __call__(self, return_tensors="pt", sampling_rate=None, **given):
        """Inputs of the model: one value or a list of values of each stream.

        sampling_rate: of all waveforms; files say their own.

        Pieces are float32 [B, L, P]; token ids int64 [B, L], -1 behind the end.
        """
        found = {}
        for name, values in given.items():
            if name not in self._encoders:
                raise ValueError(f"no stream {name!r}; there is {', '.join(self._encoders)}.")
            values = list(values) if isinstance(values, (list, tuple)) else [values]
            options = {"sampling_rate": sampling_rate} if _is_sound(self.streams[name]) else {}
            encoded = [self._encoders[name](value, **options) for value in values]
            found[name] = stack(encoded)
        return BatchFeature(found, tensor_type=return_tensors)

    @property
    def model_input_names(self):
        return list(self.streams)


def _is_sound(fields):
    return fields["kind"] == "audio"
