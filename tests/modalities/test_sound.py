"""Sound files as people have them: joined, cut, streamed, without headers, and inside of videos."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mmjax.modalities import sound, sound_media
from mmjax.modalities.audio import Audio
from mmjax.modalities.modality import Unreadable

RATE = 16000
CLIP = Audio(seconds=2.0)


def samples(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """Noise, then a tone: an encoder of variable rate spends most of its bits at the start."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, len(time)) * (time < 0.2)
    return (0.3 * np.sin(2 * np.pi * 440 * time) + noise).astype(np.float32)


def written(kind: str, values=None, rate: int = RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples() if values is None else values, rate, format=kind, **options)
    return file.getvalue()


def bare_mp3(**options) -> bytes:
    """An MP3 file of variable rate without the frame that says its length."""
    content = written("MP3", bitrate_mode="VARIABLE", compression_level=0.2, **options)
    assert b"Xing" in content[:64]
    return content[content.find(content[:2], 20) :]


def streamed_flac(**options) -> bytes:
    """A FLAC file as `flac -` writes it to a pipe: without a length."""
    content = bytearray(written("FLAC", **options))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


def container(kind: str, codec: str, picture: str = "", **options) -> bytes:
    """A file by PyAV: a stream of sound, if there is a codec for it, perhaps one of pictures."""
    form = {"pcm_s16le": "s16", "libopus": "flt", "mp2": "s16", "flac": "s16", "alac": "s16p"}
    form = form.get(codec, "fltp")
    data = samples() if "flt" in form else (samples() * 32767).astype(np.int16)
    step = 4096 if codec == "alac" else 960
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=kind, options=options) as out:
            film = out.add_stream(picture, rate=25) if picture else None
            track = out.add_stream(codec, rate=RATE, layout="mono") if codec else None
            if film is not None:
                film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
                for i in range(50):
                    image = np.full((32, 32, 3), i * 5, np.uint8)
                    out.mux(film.encode(av.VideoFrame.from_ndarray(image)))
                out.mux(film.encode())
            if track is not None:
                for at in range(0, len(data), step):
                    frame = av.AudioFrame.from_ndarray(data[None, at : at + step], form, "mono")
                    frame.sample_rate, frame.pts = RATE, at
                    out.mux(track.encode(frame))
                out.mux(track.encode())
        return Path(file.name).read_bytes()


def reason(content: bytes, audio: Audio = CLIP) -> str:
    with pytest.raises(Unreadable) as caught:
        audio.encode(content)
    assert str(caught.value).startswith("Audio: ")
    return caught.value.reason


def agrees(content: bytes, expected: np.ndarray, tolerance: float = 2.0) -> None:
    """Compares spectrograms, in decibels where it is loud: coders shift samples by a little."""
    ours, theirs = (CLIP.decode(CLIP.encode(x)) for x in (content, expected))
    loud = theirs > -15
    loud[-4:] = False
    assert np.abs(ours - theirs)[loud].mean() < tolerance


@pytest.mark.fault(
    "an MP3 file of variable rate without a header frame, of which decoders guess the length",
    "read to its end",
)
def test_an_mp3_without_its_header_is_read_to_the_end():
    content = bare_mp3()
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        assert file.frames < 1.2 * RATE, "the decoder knows better now: take another file"
    found, rate, total = sound.decode(content)
    assert len(found) == total
    assert len(found) / rate == pytest.approx(2.0, abs=0.1)
    assert sound.length(content) == pytest.approx(2.0, abs=0.1)
    agrees(content, samples())
    few, _, total = sound.decode(content, 0.5)
    assert len(few) == round(0.6 * RATE)
    assert total == len(found)
    stereo = bare_mp3(values=np.stack([samples(rate=44100)] * 2, 1), rate=44100)
    assert len(sound.decode(stereo)[0]) / 44100 == pytest.approx(2.0, abs=0.1)


def test_tags_and_rubbish_around_an_mp3_do_no_harm():
    plain = sound.decode(bare_mp3())[0]
    tag = b"ID3\x04\0\0\0\0\x02\x00" + b"\xff\xfb\x90\x44" * 64  # 256 bytes, like frames
    for content in (tag + bare_mp3(), bare_mp3() + b"TAG" + bytes(125)):
        np.testing.assert_array_equal(sound.decode(content)[0], plain)
    middle = bare_mp3()[:2000] + b"\0\xff rubbish \xff\xff" * 30 + bare_mp3()[2000:]
    assert len(sound.decode(middle)[0]) / RATE == pytest.approx(2.0, abs=0.2)


JOINED = {
    "MP3": {},
    "bare": {},
    "FLAC": {},
    "streamed": {},
    "OGG": {},
    "OPUS": {"kind": "OGG", "subtype": "OPUS"},
}


@pytest.mark.parametrize("kind", JOINED)
def test_joined_files_are_read_to_the_end_of_the_last(kind):
    makers = {"bare": bare_mp3, "streamed": streamed_flac}
    one = makers[kind]() if kind in makers else written(**{"kind": kind, **JOINED[kind]})
    found, rate, total = sound.decode(one + one)
    assert len(found) == total
    assert total / rate == pytest.approx(4.0, abs=0.2)
    assert sound.length(one + one) == pytest.approx(4.0, abs=0.2)
    few, rate, total = sound.decode(one + one, 1.0)
    assert len(few) / rate == pytest.approx(1.1, abs=0.01)
    assert total / rate == pytest.approx(4.0, abs=0.2)
    across, _, _ = sound.decode(one + one, 3.0)
    assert len(across) / rate == pytest.approx(3.1, abs=0.2)


@pytest.mark.parametrize("kind", ["OGG", "FLAC", "MP3"])
def test_joined_files_of_several_rates_are_refused(kind):
    one, other = written(kind, samples(0.4)), written(kind, samples(0.4, 44100), 44100)
    assert reason(one + other) == "broken_sound"
    assert reason(one + b"ID3\x04\0\0\0\0\0\x04" + bytes(4) + other) == "broken_sound"


@pytest.mark.fault("a FLAC file without a length, as pipes make them", "read to its end")
@pytest.mark.parametrize("seconds", [0.01, 0.3, 2.0, 7.3])
@pytest.mark.parametrize("rate", [8000, 44100, 11111])
def test_a_flac_file_without_a_length_is_read_to_the_end(seconds, rate):
    wave = samples(seconds, rate)
    found, _, total = sound.decode(streamed_flac(values=wave, rate=rate))
    assert len(found) == total == len(wave)
    np.testing.assert_allclose(found, wave, atol=2e-4)
    content = streamed_flac(values=wave, rate=rate) + b"TAG" + bytes(125)
    assert len(sound.decode(content)[0]) == len(wave)


WHOLE = {
    "WAV": lambda: written("WAV"),
    "AIFF": lambda: written("AIFF"),
    "AU": lambda: written("AU"),
    "W64": lambda: written("W64"),
    "RF64": lambda: written("RF64"),
    "FLAC": lambda: written("FLAC"),
    "MP3": lambda: written("MP3"),
    "OGG": lambda: written("OGG"),
    "OPUS": lambda: written("OGG", subtype="OPUS"),
    "M4A": lambda: container("mp4", "aac", movflags="faststart"),
    "MP4": lambda: container("mp4", "aac", picture="mpeg4", movflags="faststart"),
    "WEBM": lambda: container("webm", "libopus"),
    "AVI": lambda: container("avi", "pcm_s16le", picture="mpeg4"),
}


@pytest.mark.fault(
    "a sound file that was cut, such as half of a download", "the record is bad (cut_sound)"
)
@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_cut_is_never_taken_for_the_whole(kind):
    content = WHOLE[kind]()
    assert len(sound.decode(content)[0]) / sound.decode(content)[1] == pytest.approx(2.0, abs=0.1)
    assert reason(content[: len(content) // 2]) in ("cut_sound", "broken_sound")
    # What is used of it is there: nothing is missing.
    if kind not in ("OGG", "MP4", "AVI", "WEBM"):
        assert Audio(seconds=0.3).encode(content[: len(content) * 2 // 3]) is not None


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64", "RF64", "MP3", "M4A"])
def test_a_lost_end_that_nobody_hears_is_tolerated(kind):
    content = WHOLE[kind]()
    assert CLIP.encode(content[: len(content) * 98 // 100]) is not None


@pytest.mark.parametrize("size", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\xf0\xff\x7f"])
def test_a_wav_file_from_a_pipe_is_read_to_the_end(size):
    content = bytearray(written("WAV", subtype="PCM_16"))
    content[4:8] = content[40:44] = size
    found, _, total = sound.decode(bytes(content))
    np.testing.assert_allclose(found, samples(), atol=1e-4)
    assert total == len(found)


def test_an_empty_wav_file_with_a_note_behind_it_stays_empty():
    content = bytearray(written("WAV", np.zeros(0), subtype="PCM_16"))
    content += b"LIST\x04\0\0\0INFO"
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    assert reason(bytes(content)) == "empty_sound"


@pytest.mark.parametrize(
    ("kind", "codec", "picture"),
    [
        ("mp4", "aac", ""),
        ("mp4", "aac", "mpeg4"),
        ("mov", "pcm_s16le", "mpeg4"),
        ("mp4", "alac", ""),
        ("adts", "aac", ""),
        ("webm", "libopus", ""),
        ("matroska", "flac", "mpeg4"),
        ("avi", "pcm_s16le", "mpeg4"),
        ("mpegts", "aac", "mpeg2video"),
        ("mpeg", "mp2", "mpeg1video"),
        ("ogg", "libopus", ""),
    ],
)
def test_sound_of_containers_and_videos(kind, codec, picture):
    content = container(kind, codec, picture=picture)
    found, rate, total = sound.decode(content)
    assert len(found) / rate == pytest.approx(2.0, abs=0.15)
    assert total / rate == pytest.approx(2.0, abs=0.15)
    assert sound.length(content) == pytest.approx(2.0, abs=0.15)
    few, rate, total = sound.decode(content, 0.5)
    assert 0.59 <= len(few) / rate < 0.95
    assert total / rate == pytest.approx(2.0, abs=0.15)
    power = np.abs(np.fft.rfft(found[rate // 2 : rate // 2 + rate]))
    assert power.argmax() == pytest.approx(440, abs=1)


def test_a_video_without_sound_is_a_record_without_sound():
    mute = container("mp4", "", picture="mpeg4")
    assert CLIP.encode(mute) is None
    with pytest.raises(Unreadable, match="it holds no sound"):
        CLIP.adapted(mute)


def test_a_missing_package_is_told_with_the_extra(monkeypatch, tmp_path):
    content = container("mp4", "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    assert reason(content) == "needs_media"
    (tmp_path / "a.m4a").write_bytes(content)
    with pytest.raises(ValueError, match=r"needs PyAV: pip install 'mmjax\[media\]'"):
        CLIP.read(str(tmp_path / "a.m4a"))
    assert CLIP.encode(written("WAV")) is not None


def test_the_limit_of_samples_holds_in_containers_too():
    content = container("mp4", "aac")
    assert reason(content, Audio(seconds=2.0, max_samples=20_000)) == "sound_too_large"
    assert Audio(seconds=0.5, max_samples=20_000).encode(content) is not None


@pytest.mark.fault(
    "a list of addresses, or a video that names other files, in place of a sound",
    "the record is bad (broken_sound); nothing else is opened",
)
def test_containers_open_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "secret.wav").write_bytes(written("WAV"))
    name = str(tmp_path / "secret.wav")
    for content in (
        f"#EXTM3U\n#EXTINF:1,\nfile://{name}\n".encode(),
        f"ffconcat version 1.0\nfile '{name}'\n".encode(),
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=audio 5004 RTP/AVP 0\r\n",
        f"<MPD><BaseURL>file://{name}</BaseURL></MPD>".encode(),
    ):
        assert reason(content) == "broken_sound"
        # Not even behind the first bytes of a container.
        assert reason(b"\0\0\0\x08ftyp" + content) == "broken_sound"
        assert sound_media.format_of(content) == ""


def test_a_clip_of_ten_minutes_costs_no_more_than_what_is_used():
    long = written("FLAC", np.zeros(600 * RATE, np.float32))
    piece = Audio(seconds=1.0).encode(long)
    assert piece.num_cut == (600 - 1) * 25
    assert reason(written("WAV", np.zeros(0))) == "empty_sound"
