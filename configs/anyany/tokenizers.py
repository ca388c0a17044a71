"""Tokenizers of sounds as samples, of videos and of pictures: two for a CPU, others at full size.

paper: Zeghidour et al. 2021 (SoundStream, arXiv 2107.03312) and Defossez et al. 2022 (EnCodec,
  arXiv 2210.13438) for sounds; Mentzer et al. 2023 (finite scalar quantisation, arXiv 2309.15505)
  and Yu et al. 2021 (ViT-VQGAN, arXiv 2110.04627) for pictures and videos.
kept: strides, dilated units, residual codebooks, losses of samples and of spectra at several
  resolutions; attention over all codes of a picture or a video.
differs: no adversary and no perceptual network; sounds are coded whole, not as a stream.
command: mmjax train-tokenizer configs/anyany/tokenizers.py:speech_16k
  --workdir runs/tokenizers/speech_16k
result: speech_16k, 1,000 clips of val: SI-SNR 7.1 dB, error 16.9 % of the variance, 55 % of codes
  used, after 11 minutes on two cores that others used, too
status: simplified

`speech_16k` trains in eleven minutes on two cores; `video` is as small, and was tried for 150 steps
alone (20.4 dB of PSNR, codes collapsed). The others were not trained; they read your own files: tar
shards with a picture, a sound or a video in each record (docs/data.md); set DATA.
`mmjax plan configs/anyany/tokenizers.py:image_64 --topology v5e-16` estimates of the 15.74 GiB of a
device, and of a step at best:

    image_64        28.6 M parameters   256 pictures a step   1.44 GiB    5.9 ms
    image_256       68.4 M              256                   8.08 GiB   56.0 ms
    sound_16k_1s    27.8 M              128 sounds            1.42 GiB    5.6 ms
    sound_16k_10s   28.3 M               16                   1.65 GiB    6.7 ms
    sound_24k_1s    27.8 M              128                   1.87 GiB    7.7 ms
    sound_24k_10s   28.5 M               16                   2.22 GiB    9.3 ms
    video_16       154.8 M               64 videos            7.99 GiB   63.0 ms
"""

import dataclasses

from mmjax.data.layouts import Aligned
from mmjax.data.source import Source
from mmjax.data.task import Task
from mmjax.data.webdataset import WebDataset
from mmjax.demo.numbers import Numbers
from mmjax.demo.toyworld import ToyWorld
from mmjax.experiment import Experiment, Logging
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.video import Video
from mmjax.modalities.waveform import Waveform
from mmjax.models import FSQ, VQ, Autoencoder, ResidualVQ
from mmjax.objectives import Reconstruction
from mmjax.optim import AdamW
from mmjax.run.checkpoint import Checkpointing

DATA = "data/own/{00000..00099}.tar"
FILES = {"image": "jpg;jpeg;png;webp", "audio": "wav;flac;mp3;ogg;opus", "video": "gif;webp;npy"}
FULL = FSQ(levels=(8, 8, 8, 5, 5, 5))  # 64,000 codes


def speech_16k() -> Experiment:
    """Spoken numbers: 400 codes of 4,096 a second, 4.8 kbit; each for 40 samples."""
    model = Autoencoder(
        piece=(320, 1, 1), code_grid=(192, 1), strides=(2, 2), width=96, kernel=7,
        encoder_layers=1, decoder_layers=1, quantizer=FSQ(levels=(8, 8, 8, 8)),
    )  # fmt: skip
    objective = Reconstruction(spectral=(64, 256, 1024), spectral_weight=0.03)
    modality = Waveform(seconds=0.48, patch=320, scale=0.1)
    source = Numbers(train_size=4000)
    return _experiment("audio", modality, source, model, objective, 8, 3e-3, 2200)


def video() -> Experiment:
    """ToyWorld: 1,000 codes, 256 of them a video, each for two frames of 4 x 4 pixels."""
    model = Autoencoder(
        piece=(2, 8, 8, 3), code_grid=(4, 8, 8), width=64, expansion=1,
        quantizer=FSQ(levels=(8, 5, 5, 5)),
    )  # fmt: skip
    modality = Video(num_frames=8, frames=2, size=(32, 32), patch=8)
    source = ToyWorld(streams=("video",), train_size=400, eval_size=100)
    return _experiment("video", modality, source, model, Reconstruction(), 8, 4e-3, 400)


def image_64() -> Experiment:
    """64 x 64 pixels, 256 codes, each for 4 x 4 pixels."""
    return _image(64, 4, 384, 6)


def image_256() -> Experiment:
    """256 x 256 pixels, 1,024 codes, each for 8 x 8 pixels."""
    return _image(256, 8, 512, 8)


def sound_16k_1s() -> Experiment:
    """Whole seconds of speech: 50 times a second eight codes of 1,024."""
    return _sound(16_000, 1, (2, 4, 5, 8))


def sound_16k_10s() -> Experiment:
    """As `sound_16k_1s`, ten seconds at a time."""
    return _sound(16_000, 10, (2, 4, 5, 8))


def sound_24k_1s() -> Experiment:
    """Music and speech: 75 times a second eight codes of 1,024, as EnCodec at 6 kbit/s."""
    return _sound(24_000, 1, (2, 4, 5, 8))


def sound_24k_10s() -> Experiment:
    """As `sound_24k_1s`, ten seconds at a time."""
    return _sound(24_000, 10, (2, 4, 5, 8))


def video_16() -> Experiment:
    """16 frames of 128 x 128 pixels: 2,048 codes, each for two frames of 8 x 8 pixels."""
    model = Autoencoder(
        piece=(2, 16, 16, 3), code_grid=(8, 16, 16), width=768, num_heads=12, encoder_layers=8,
        decoder_layers=8, expansion=4, quantizer=FULL,
    )  # fmt: skip
    modality = Video(num_frames=16, frames=2, size=(128, 128), patch=16)
    objective = Reconstruction(error="l1")
    return _experiment("video", modality, None, model, objective, 64, 3e-4, 200_000)


def _codebooks(number: int, num_codes: int) -> ResidualVQ:
    """Codes for what others have left, so few are used at first: they are replaced late."""
    one = VQ(num_codes=num_codes, width=16, cosine=False, commitment=0.25, dead_threshold=0.1)
    return ResidualVQ(of=one, num_codebooks=number)


def _image(size: int, pixels: int, width: int, layers: int) -> Experiment:
    model = Autoencoder(
        piece=(16, 16, 3), code_grid=(size // pixels,) * 2, width=width, num_heads=width // 64,
        encoder_layers=layers, decoder_layers=layers, expansion=4, quantizer=FULL,
    )  # fmt: skip
    modality = Image(size=(size, size), patch=16, resize="crop")
    objective = Reconstruction(error="l1")
    return _experiment("image", modality, None, model, objective, 256, 3e-4, 200_000)


def _sound(rate: int, seconds: int, strides: tuple[int, ...]) -> Experiment:
    quantizer = dataclasses.replace(_codebooks(8, 1024), dropout=0.5)
    model = Autoencoder(
        piece=(320, 1, 1), code_grid=(rate * seconds // 320, 1), strides=strides, width=512,
        kernel=7, quantizer=quantizer,
    )  # fmt: skip
    objective = Reconstruction(error="l1", spectral=(64, 128, 256, 512, 1024, 2048))
    modality = Waveform(sample_rate=rate, seconds=seconds, patch=320, scale=0.1)
    batch = 128 if seconds == 1 else 16
    return _experiment("audio", modality, None, model, objective, batch, 3e-4, 400_000)


def _experiment(
    name: str,
    modality: Modality,
    source: Source | None,
    model: Autoencoder,
    objective: Reconstruction,
    batch_size: int,
    learning_rate: float,
    total_steps: int,
) -> Experiment:
    full = source is None
    return Experiment(
        name=f"{name}_tokenizer",
        modalities={name: modality},
        model=model,
        tasks={
            "reconstruct": Task(
                source=source or WebDataset(path=DATA, fields={name: FILES[name]}),
                inputs=(name,),
                layout=Aligned(),
                objective=objective,
                batch_size=batch_size,
                group_rows=1 if full else 4,
            )
        },
        optimizer=AdamW(learning_rate=learning_rate, weight_decay=0.0),
        checkpoint=Checkpointing(every=5000 if full else 0),
        logging=Logging(log_every=100),
        total_steps=total_steps,
    )
