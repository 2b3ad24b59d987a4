"""A stretch of a long file is what the whole file has there, and a stream of frames becomes a clip."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentsync.errors import InputError, OutputError
from latentsync.media.audio import open_audio, samples_between
from latentsync.media.clip import frames_between, read_audio, read_frames
from latentsync.media.clip_writer import ClipStyle, coded_colour, coded_layout, write_stream
from latentsync.media.layout import Colour, Layout
from latentsync.media.picture import Picture, square
from latentsync.media.timeline import timeline
from latentsync.media.video import open_video

BARS = 8


def numbered(width: int, height: int, k: int) -> np.ndarray:
    """The frame's number as black and white bars."""
    bars = (k >> (np.arange(width) * BARS // width)) & 1
    return np.repeat(np.repeat((bars * 255).astype(np.uint8)[None, :, None], height, 0), 3, 2)


def numbers(frames: Any) -> list[int]:
    found = []
    for frame in frames:
        bars = frame.picture.rgb().mean((0, 2)).reshape(BARS, -1).mean(1)
        found.append(int(((bars > 128) << np.arange(BARS)).sum()))
    return found


def sound(seconds: float, rate: int) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 20 * t) * t)).astype(np.float32)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(12)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_from_the_start_are_those_of_the_timeline(make_video: Any, rate: Fraction, suffix: str) -> None:
    path = make_video(f"a{suffix}", 50, rate=rate, picture=numbered)
    with open_video(path) as video:
        wanted = numbers(timeline(video, Fraction(100), when_audio_longer="cut", fps=Fraction(25)))
    found = list(frames_between(path, Fraction(0), None, 25))
    assert numbers(found) == wanted
    assert [(f.index, f.time) for f in found] == [(k, Fraction(k, 25)) for k in range(len(wanted))]


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_frames_from_a_place_far_inside(make_video: Any, monkeypatch: pytest.MonkeyPatch, rate: Fraction, suffix: str) -> None:
    path = make_video(f"a{suffix}", 250, size=(32, 16), rate=rate, picture=numbered, options={"g": "20", "bf": "2"})
    monkeypatch.setattr("latentsync.media.clip._FAR", 2)  # seconds from which it seeks
    whole = numbers(frames_between(path, Fraction(0), None, 25))
    for start, end in ((37, 60), (149, 171), (160, 161), (len(whole) - 3, None)):
        span = frames_between(path, Fraction(start, 25), None if end is None else Fraction(end, 25), 25)
        frames = list(span)
        assert [f.index for f in frames] == list(range(start, len(whole) if end is None else end))
        assert numbers(frames) == whole[start:end]
    assert list(frames_between(path, Fraction(100), Fraction(101), 25)) == []


def test_where_key_frames_mislead_the_answer_is_the_same(make_video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that refreshes its picture gradually calls frames key frames that are none."""
    path = make_video("a.mp4", 120, size=(64, 64), picture=numbered, options={"g": "20", "bf": "0", "x264-params": "intra-refresh=1"})
    monkeypatch.setattr("latentsync.media.clip._FAR", 1)
    assert numbers(frames_between(path, Fraction(3), Fraction(4), 25)) == list(range(75, 100))


def test_only_what_is_asked_for_is_decoded(make_video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video("a.mp4", 250, size=(32, 16), picture=numbered, options={"g": "25"})
    decoded = []
    real = open_video.__globals__["Video"]._picture
    monkeypatch.setattr("latentsync.media.video.Video._picture", lambda self, frame: decoded.append(frame.pts) or real(self, frame))
    assert numbers(islice(frames_between(path, Fraction(8), None, 25), 5)) == [200, 201, 202, 203, 204]
    assert len(decoded) < 12


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [(".mp4", "aac", 16000), (".mkv", "flac", 16000), (".mp4", "aac", 44100), (".ts", "aac", 16000)],
)
def test_sound_between_is_that_of_the_whole(make_video: Any, suffix: str, codec: str, rate: int) -> None:
    path = make_video(f"a{suffix}", 300, size=(16, 16), sound=sound(12, rate), sound_rate=rate, sound_codec=codec, options={"g": "25"})
    whole = np.concatenate(list(open_audio(path, beside=path).samples()))
    for start, end in ((0, 2), (3.2, 7.4), (9.96, 12.0)):
        first, last = round(start * 16000), round(end * 16000)
        part = np.concatenate(list(samples_between(path, Fraction(start).limit_denominator(100), Fraction(end).limit_denominator(100))))
        assert len(part) == last - first
        wanted = np.pad(whole, (0, 16000))[first:last]
        # Matroska rounds the time of a packet to a millisecond, so a sound begun at one lies up to half of that beside it.
        if suffix == ".mkv" and start > 2:
            assert min(np.abs(part[20:-20] - np.roll(wanted, s)[20:-20]).max() for s in range(-9, 10)) < 0.02
        else:
            assert np.abs(part - wanted).max() < 2e-3


def test_sound_beyond_its_end_is_silence(make_video: Any) -> None:
    path = make_video("a.mp4", 100, size=(16, 16), sound=sound(2, 16000))
    part = np.concatenate(list(samples_between(path, Fraction(3, 2), Fraction(7, 2))))
    assert len(part) == 32000
    assert np.abs(part[:7000]).max() > 0.3
    assert not part[10000:].any()
    assert sum(map(len, samples_between(path, Fraction(9), Fraction(10)))) == 16000
    with pytest.raises(InputError, match="holds no sound"):
        list(samples_between(make_video("silent.mp4", 5), Fraction(0), Fraction(1)))


def test_a_stream_of_pictures_keeps_its_samples(make_video: Any, tmp_path: Path) -> None:
    """At crf 0 nothing changes: no conversion to RGB and back, no range or matrix lost."""
    source = make_video("a.mp4", 12, options={"crf": "20"}, setup=lambda s: (setattr(s, "color_range", 2), setattr(s, "colorspace", 1)))
    with open_video(source) as video:
        pictures = [f.picture for f in video.frames()]
        colour = coded_colour(video.info.colour, video.info.layout)
    samples = sound(0.48, 16000)
    chunks = (samples[i : i + 999] for i in range(0, len(samples), 999))
    target = tmp_path / "deep" / "it's.mp4"
    style = ClipStyle(crf=0, key_every=5, sound="flac")
    assert write_stream(target, iter(pictures), 25, chunks, style=style, colour=colour) == 12
    with open_video(target) as video:
        back = [f.picture for f in video.frames()]
        assert (video.info.layout.full, video.info.colour.matrix) == (pictures[0].layout.full, colour.matrix)
    for a, b in zip(pictures, back, strict=True):
        assert all(np.array_equal(p, q) for p, q in zip(a.planes, b.planes, strict=True))
    assert np.abs(read_audio(target) - samples).max() <= 0.5 / 32768 + 1e-7
    with av.open(str(target)) as container:
        keys = sorted(p.pts * p.time_base * 25 for p in container.demux(video=0) if p.size and p.is_keyframe)
    assert keys[0] == 0
    assert np.diff([*map(int, keys), 12]).max() <= 5
    again = tmp_path / "again.mp4"
    write_stream(again, iter(pictures), 25, [samples], style=style, colour=colour)
    assert again.read_bytes() == target.read_bytes()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["it's.mp4"]


def test_a_stream_of_arrays_in_full_colour(tmp_path: Path) -> None:
    y, x = np.mgrid[0:64, 0:64]
    frame = np.stack([x * 3 + 40, 200 - y * 2, np.where((x // 2) % 2, 60, 180)], -1).astype(np.uint8)
    write_stream(tmp_path / "a.mkv", [frame] * 3, 25, style=ClipStyle(crf=4, pixels="yuv444p"))
    back = read_frames(tmp_path / "a.mkv", [Fraction(0)])[0]
    assert np.abs(back.astype(int) - frame).mean() < 1.5


def test_a_stream_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield np.zeros((16, 16, 3), np.uint8)
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        write_stream(tmp_path / "a.mp4", broken(), 25, [sound(1, 16000)])
    with pytest.raises(OutputError, match="no frames"):
        write_stream(tmp_path / "a.mp4", [], 25)
    assert list(tmp_path.iterdir()) == []


def test_square_pixels_keep_what_is_where() -> None:
    layout = Layout("yuv", 8, 1, 1)
    y, x = np.mgrid[0:48, 0:40].astype(np.float32)
    planes = (x * 4 + y, x[::2, ::2] * 3 + 50, y[::2, ::2] * 3 + 50)
    picture = Picture(tuple(p.astype(np.uint8) for p in planes), layout, Fraction(3, 2))
    made = square(picture)
    assert (made.width, made.height, made.pixel_aspect) == (60, 48, 1)
    assert abs(float(made.planes[0][20, 30]) - float(((30 + 0.5) / 1.5 - 0.5) * 4 + 20)) < 2
    assert (square(Picture(picture.planes, layout, Fraction(2, 3))).width, square(made)) == (40, made)


def test_what_styles_make_of_layouts() -> None:
    deep = Layout("yuv", 10, 0, 0, True, 0.2126, 0.0722)
    assert coded_layout(deep, ClipStyle()) == Layout("yuv", 8, 1, 1, True, 0.2126, 0.0722)
    assert coded_layout(Layout("rgb", 8), ClipStyle(pixels="yuv444p")) == Layout("yuv", 8, 0, 0)
    assert coded_colour(Colour(0, 2), Layout("rgb", 8)).matrix == 6
