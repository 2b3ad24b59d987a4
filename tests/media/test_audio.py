"""Sound: exact lengths, places in time, any format."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentsync.errors import InputError
from latentsync.media.audio import Placer, open_audio
from latentsync.media.video import open_video
from latentsync.media.writer import VideoWriter


def heard(path: Path, rate: int = 16000) -> np.ndarray:
    chunks = list(open_audio(path).samples(rate))
    assert all(c.dtype == np.float32 and c.ndim == 1 for c in chunks)
    return np.concatenate(chunks)


def write(path: Path, samples: np.ndarray, rate: int, codec: str, fmt: str = "flt", start: int = 0, gap: tuple[int, int] | None = None) -> Path:
    """Encodes (n, channels) samples; `gap` = (position, samples) moves everything from a position on later."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=rate, layout=layout)
        converter = av.AudioResampler(stream.codec_context.format.name, layout, rate)
        step = 1024
        for at in range(0, len(samples), step):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[at : at + step].astype(np.float32)).reshape(1, -1), "flt", layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = at + start + (gap[1] if gap and at >= gap[0] else 0)
            for part in converter.resample(frame):
                out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("count", [1, 7, 1600, 30011])
def test_length_is_exact(make_wav: Any, rate: int, count: int) -> None:
    path = make_wav("a.wav", np.full(count, 0.25), rate)
    audio = open_audio(path)
    assert audio.info.duration == Fraction(count, rate)
    assert (audio.info.rate, audio.info.channels, audio.info.codec) == (rate, 1, "pcm_s16le")
    samples = np.concatenate(list(audio.samples()))
    assert len(samples) == math.ceil(Fraction(count * 16000, rate))


def test_samples_at_16_khz_are_those_of_the_file(make_wav: Any) -> None:
    wave = np.random.default_rng(0).integers(-32768, 32768, 5000) / 32768
    got = heard(make_wav("a.wav", wave * 32768 / 32767))
    np.testing.assert_array_equal(got, wave.astype(np.float32))


def test_channels_are_averaged(make_wav: Any) -> None:
    wave = np.stack((np.full(3200, 0.5), np.full(3200, -0.25)), axis=1)
    np.testing.assert_allclose(heard(make_wav("a.wav", wave)), 0.125, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 96000])
def test_resampling_keeps_time_and_tone(make_wav: Any, rate: int) -> None:
    t = np.arange(rate * 2) / rate
    got = heard(make_wav("a.wav", 0.5 * np.sin(2 * np.pi * 440 * t), rate))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(got)) / 16000)
    assert np.abs(got - expected)[200:-200].max() < 2e-3


@pytest.mark.parametrize(
    ("name", "codec", "channels", "rate"),
    [
        ("a.flac", "flac", 2, 44100), ("a.m4a", "aac", 2, 48000), ("a.mp3", "libmp3lame", 2, 44100), ("a.opus", "libopus", 2, 48000),
        ("a.wav", "pcm_f32le", 6, 48000), ("a.wav", "pcm_u8", 1, 8000), ("a.mka", "ac3", 6, 48000), ("a.caf", "pcm_s24le", 2, 44100),
        ("a.aiff", "pcm_s16be", 1, 22050),
        ("a.aac", "aac", 1, 16000), ("a.mka", "alac", 2, 44100), ("a.mp4", "aac", 1, 8000), ("a.mp2", "mp2", 2, 32000),
        ("a.au", "pcm_mulaw", 1, 8000),
    ],
)  # fmt: skip
def test_any_format_is_heard_at_its_time(tmp_path: Path, name: str, codec: str, channels: int, rate: int) -> None:
    """A burst in the middle of silence stays where it is: within 1 ms where the container knows the codec's priming."""
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec}")
    wave = np.zeros((rate * 2, channels))
    n = rate // 50
    burst = np.sin(np.arange(n) * 2 * np.pi * 1000 / rate) * np.hanning(n)
    wave[rate : rate + n] = 0.8 * burst[:, None]
    got = heard(write(tmp_path / name, wave, rate, codec))
    center = float((np.arange(len(got)) * got**2).sum() / (got**2).sum()) / 16000
    told = name not in ("a.aac", "a.mp2") and not (name == "a.mka" and codec == "ac3")  # streams that do not tell their priming
    assert abs(center - 1.01) < (0.001 if told else 0.07)


def test_gap_in_the_timestamps_is_silence(tmp_path: Path) -> None:
    wave = np.full((16000, 1), 0.5)
    path = write(tmp_path / "a.mka", wave, 16000, "pcm_s16le", gap=(8192, 16000))
    audio = open_audio(path)
    assert abs(audio.info.duration - 2) < Fraction(1, 500)
    got = np.concatenate(list(audio.samples()))
    assert np.abs(got[8400:24000]).max() < 1e-3
    assert got[:8000].min() > 0.4
    assert got[24400:].min() > 0.4
    assert any("silence" in n for n in audio.info.notes)


def test_audio_only_file_starts_at_its_first_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mka", np.full((16000, 1), 0.5), 16000, "pcm_s16le", start=32000)
    assert open_audio(path).info.duration == 1
    assert heard(path).min() > 0.4


@pytest.mark.parametrize("offset", [Fraction(1, 2), Fraction(-1, 4)])
def test_offset_to_the_video_of_the_same_file_is_kept(tmp_path: Path, offset: Fraction) -> None:
    path = tmp_path / "a.mkv"
    base = Fraction(1)
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("mpeg4", rate=25, time_base=Fraction(1, 25))
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        sound: Any = out.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 16000), 9000, np.int16), "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), int((base + offset) * 16000)
        for k in range(25):
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24").reformat(format="yuv420p")
            image.pts, image.time_base = int(base * 25) + k, Fraction(1, 25)
            out.mux(video.encode(image))
        out.mux(video.encode(None))
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    got = np.concatenate(list(open_audio(path, beside=path).samples()))
    loud = np.flatnonzero(np.abs(got) > 0.1)
    assert len(got) == 16000 + offset * 16000
    assert abs(loud[0] - max(0, offset * 16000)) < 20
    elsewhere = heard(path)  # for another picture: a late start stays, and nothing is cut
    assert len(elsewhere) == 16000 + max(0, offset) * 16000


def test_samples_can_be_read_again_and_side_by_side(make_wav: Any) -> None:
    audio = open_audio(make_wav("a.wav", np.random.default_rng(1).random(40000) - 0.5, 44100))
    for a, b in zip(audio.samples(), audio.samples(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_wild_clocks_never_allocate_or_crash() -> None:
    placer = Placer(16000, Fraction(0))
    assert placer.place("a", Fraction(0), 1000).silence == 0
    assert placer.place("b", Fraction(10**6), 1000).silence == 0  # eleven days: a fault
    assert placer.place("c", Fraction(-5), 1000) == (0, "c", 0, 1000)
    assert placer.place("d", None, 1000).start == 0
    assert placer.position == 4000


def test_damaged_packets_become_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", np.full((160000, 1), 0.3), 16000, "flac")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(bytes(data))
    audio = open_audio(path)
    assert abs(float(audio.info.duration) - 10) < 1.2
    assert sum(map(len, audio.samples())) == math.ceil(audio.info.duration * 16000)


def test_first_of_several_streams_is_used_and_said(clips: Path) -> None:
    path = clips / "special" / "torchcodec__nasa_13013.mp4"
    if not path.is_file():
        pytest.skip("clip absent")
    info = open_audio(path).info
    assert info.rate == 8000
    assert "2 audio streams, using the first" in info.notes[0]


def test_every_sound_of_the_clips(clips: Path) -> None:
    for path in sorted((clips / "audio").iterdir()):
        audio = open_audio(path)
        got = np.concatenate(list(audio.samples()))
        assert len(got) == math.ceil(audio.info.duration * 16000)
        assert np.isfinite(got).all()
        assert np.abs(got).max() > 0.05


def test_silent_video_is_refused(make_video: Any) -> None:
    with pytest.raises(InputError, match="no sound"):
        open_audio(make_video("a.mp4", 2))


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.wav", "pcm_s16le"), ("a.flac", "flac")])
def test_eight_channels(tmp_path: Path, make_video: Any, name: str, codec: str) -> None:
    """7.1 is heard, and goes beside a video: PyAV miscounts the planes of such frames, and would crash the process."""
    rate = 48000
    t = np.arange(rate) / rate
    wave = np.stack([0.02 * k * np.sin(2 * np.pi * 440 * t) for k in range(8)])
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=rate, layout="7.1")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave.T, np.float32).reshape(1, -1), "flt", "7.1")
        frame.sample_rate, frame.pts = rate, 0
        convert = av.AudioResampler(stream.codec_context.format.name, "7.1", rate, frame_size=1024)
        for part in [*convert.resample(frame), *convert.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    got = heard(path)
    expected = 0.07 * np.sin(2 * np.pi * 440 * np.arange(len(got)) / 16000)
    assert abs(len(got) - 16000) < 200
    assert np.abs(got - expected)[400:15000].max() < 0.02
    video = open_video(make_video("v.mp4", 25))
    with VideoWriter(tmp_path / "out.mp4", video.info, audio=path) as writer:
        for picture in video.frames():
            writer.write(picture)
    sound = open_audio(tmp_path / "out.mp4")
    assert sound.info.channels == 8
    again = np.concatenate(list(sound.samples()))
    assert np.corrcoef(again[400:15000], got[400:15000])[0, 1] > 0.95  # AAC keeps only the bass of one of the eight
