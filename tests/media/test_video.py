"""Reading: exact times, orientation, tags, and the same frames backwards."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentsync.errors import InputError
from latentsync.media import video as video_module
from latentsync.media.video import Video, open_video


def listed(video: Video) -> list[tuple[int, Fraction, Fraction, bytes]]:
    return [(f.index, f.time, f.duration, b"".join(p.tobytes() for p in f.picture.planes)) for f in video.frames()]


def check_backwards(path: Path) -> int:
    """Backwards must give the frames of the forward pass reversed, with mirrored times. Returns how many there are."""
    video = open_video(path)
    with video:
        there = [(f.index, f.time, f.duration, hash(b"".join(p.tobytes() for p in f.picture.planes))) for f in video.frames()]
        end = there[-1][1] + there[-1][2]
        back = [(f.index, f.time, f.duration, hash(b"".join(p.tobytes() for p in f.picture.planes))) for f in video.backwards()]
    assert [b[0] for b in back] == [t[0] for t in reversed(there)]
    assert [b[3] for b in back] == [t[3] for t in reversed(there)]
    assert [b[1:3] for b in back] == [(end - t[1] - t[2], t[2]) for t in reversed(there)]
    assert back[0][1] == 0
    return len(there)


RATES = [Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(50), Fraction(60)]


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_times_are_exact(make_video: Any, rate: Fraction) -> None:
    video = open_video(make_video("a.mp4", 20, rate=rate))
    frames = list(video.frames())
    assert [f.time for f in frames] == [k / rate for k in range(20)]
    assert all(f.duration == 1 / rate for f in frames)
    assert [f.index for f in frames] == list(range(20))
    assert video.info.rate == rate
    assert video.length == 20 / rate
    assert video.count == 20


def test_variable_times_are_exact(make_video: Any) -> None:
    times = [Fraction(k * k + 3 * k, 600) for k in range(20)]
    video = open_video(make_video("a.mp4", 20, times=times, time_base=Fraction(1, 600)))
    frames = list(video.frames())
    assert [f.time for f in frames] == times
    assert [f.duration for f in frames[:-1]] == [b - a for a, b in pairwise(times)]


@pytest.mark.parametrize(
    ("name", "codec", "options", "pix_fmt"),
    [
        ("closed.mp4", "libx264", {"g": "12", "bf": "3"}, "yuv420p"),
        ("open.mp4", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"}, "yuv420p"),
        ("open.mkv", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}, "yuv420p"),
        ("open.ts", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}, "yuv420p"),
        ("refresh.mp4", "libx264", {"g": "12", "x264-params": "intra-refresh=1:bframes=0"}, "yuv420p"),
        ("long.mp4", "libx264", {"g": "1000", "bf": "2"}, "yuv420p"),
        ("hevc.mp4", "libx265", {"x265-params": "log-level=none:keyint=10:open-gop=1:bframes=3"}, "yuv420p10le"),
        ("mpeg4.avi", "mpeg4", {"g": "10", "bf": "2"}, "yuv420p"),
        ("mpeg2.mpg", "mpeg2video", {"g": "10", "bf": "2"}, "yuv420p"),
        ("mpeg2.ts", "mpeg2video", {"g": "10", "bf": "2"}, "yuv420p"),
        ("raw.h264", "libx264", {"g": "12", "bf": "3"}, "yuv420p"),
        ("ffv1.mkv", "ffv1", {}, "yuv422p"),
        ("mjpeg.avi", "mjpeg", {}, "yuvj420p"),
        ("vp9.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime"}, "yuv420p"),
        ("anim.gif", "gif", {}, "rgb8"),
    ],
)
@pytest.mark.parametrize("held", [7, 10_000])
def test_backwards_gives_the_same_frames(make_video: Any, monkeypatch: Any, name: str, codec: str, options: Any, pix_fmt: str, held: int) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec}")
    path = make_video(name, 61, codec=codec, options=options, pix_fmt=pix_fmt)
    info = open_video(path).info
    monkeypatch.setattr(video_module, "BACKWARDS_FRAMES", 1)
    monkeypatch.setattr(video_module, "BACKWARDS_BYTES", held * info.layout.frame_bytes(info.width, info.height))
    assert check_backwards(path) >= 59  # a raw stream's decoder may hold back its last frames


def test_backwards_holds_a_bounded_number_of_frames(make_video: Any, monkeypatch: Any) -> None:
    path = make_video("long.mp4", 90, options={"g": "1000"})
    video = open_video(path)
    monkeypatch.setattr(video_module, "BACKWARDS_FRAMES", 1)
    monkeypatch.setattr(video_module, "BACKWARDS_BYTES", 8 * video.info.layout.frame_bytes(64, 48))
    alive: list[Any] = []
    seen: list[int] = []
    original = Video._picture

    class Counted(Video):
        def _picture(self, frame: Any) -> Any:
            picture = original(self, frame)
            alive.append(picture.planes[0])
            return picture

    counted = Counted(path)
    for frame in counted.backwards():
        import sys

        alive[:] = [p for p in alive if sys.getrefcount(p) > 3]
        seen.append(len(alive))
        del frame
    assert len(seen) == 90
    assert max(seen) <= 10


def test_every_clip_backwards(clips: Path) -> None:
    """Small clips of every kind; the large ones are left to the slow test."""
    files = sorted(p for folder in ("talking", "special") for p in (clips / folder).iterdir() if p.stat().st_size < 1_100_000)
    if not files:
        pytest.skip("no small clips")
    for path in files:
        assert check_backwards(path) > 1, path.name


@pytest.mark.slow
def test_every_large_clip_backwards(clips: Path) -> None:
    kinds = set()
    for path in sorted(p for folder in ("talking", "special") for p in (clips / folder).iterdir() if p.stat().st_size >= 1_100_000):
        info = open_video(path).info
        kind = (path.suffix, info.codec, info.width, info.height)
        if kind not in kinds:  # one of each kind is enough
            assert check_backwards(path) > 1, path.name
        kinds.add(kind)


@pytest.mark.parametrize(("degrees", "clockwise"), [(0, 0), (-90, 90), (180, 180), (90, 270)])
def test_rotation_metadata_turns_the_picture(make_video: Any, degrees: int, clockwise: int) -> None:
    plain = open_video(make_video("plain.mp4", 3, size=(64, 48)))
    turned = open_video(make_video("turned.mp4", 3, size=(64, 48), rotation=degrees))
    assert turned.info.rotation == clockwise
    assert (turned.info.width, turned.info.height) == ((48, 64) if clockwise % 180 else (64, 48))
    for a, b in zip(plain.frames(), turned.frames(), strict=True):
        np.testing.assert_array_equal(np.rot90(a.picture.rgb(), -clockwise // 90), b.picture.rgb())


def test_turned_422_is_repeated_to_444_and_said(make_video: Any) -> None:
    path = make_video("t.mov", 2, codec="prores_ks", pix_fmt="yuv422p10le", rotation=90)
    info = open_video(path).info
    assert info.pixel_format == "yuv444p10le"
    assert any("yuv444p10le" in n for n in info.notes)


def test_aspect_and_tags_are_read(make_video: Any) -> None:
    def setup(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        stream.codec_context.colorspace, stream.codec_context.color_range = 9, 1
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 9, 16

    info = open_video(make_video("a.mp4", 2, pix_fmt="yuv420p10le", setup=setup)).info
    assert info.pixel_aspect == Fraction(16, 11)
    assert (info.colour.matrix, info.colour.range, info.colour.primaries, info.colour.transfer) == (9, 1, 9, 16)
    assert (info.layout.kr, info.bit_depth, info.pixel_format) == (0.2627, 10, "yuv420p10le")


def test_untagged_matrix_is_guessed_by_size(make_video: Any) -> None:
    assert open_video(make_video("sd.mp4", 1, size=(640, 480))).info.layout.kr == 0.299
    assert open_video(make_video("hd.mp4", 1, size=(1280, 720))).info.layout.kr == 0.2126
    assert open_video(make_video("portrait.mp4", 1, size=(720, 1280))).info.layout.kr == 0.2126


def test_first_of_several_streams_is_used_and_said(clips: Path) -> None:
    path = clips / "special" / "torchcodec__nasa_13013.mp4"
    if not path.is_file():
        pytest.skip("clip absent")
    info = open_video(path).info
    assert (info.width, info.height) == (320, 180)
    assert "2 video streams, using the first" in info.notes[0]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (33, 21), (2, 1)])
@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mkv", "ffv1", "yuv420p"), ("a.mkv", "ffv1", "gray"), ("a.png", "png", "rgb24")])
def test_tiny_and_odd_sizes(make_video: Any, size: tuple[int, int], name: str, codec: str, pix_fmt: str) -> None:
    video = open_video(make_video(name, 1, size=size, codec=codec, pix_fmt=pix_fmt, options={"level": "3", "slices": "1"} if codec == "ffv1" else {}))
    assert (video.info.width, video.info.height) == size
    frame = next(iter(video.frames()))
    assert frame.picture.rgb().shape == (size[1], size[0], 3)
    assert [f.index for f in video.backwards()] == [0]
    assert frame.duration > 0


def test_damaged_timestamps_are_repaired(tmp_path: Path) -> None:
    """A duplicate and a swapped pair are squeezed in; frames after them keep their times; a clock set back goes on."""
    path = tmp_path / "a.nut"
    stamps = [0, 1, 2, 2, 3, 5, 4, 6, 7]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("rawvideo", rate=25, time_base=Fraction(1, 25))
        stream.width, stream.height, stream.pix_fmt = 16, 16, "gray"
        for k, _ in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16), k * 10, np.uint8), "gray")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(frame))
    clock = video_module._Clock(Fraction(1, 25), Fraction(25))
    times = [Fraction(clock.place(s), 25 * 1024) for s in stamps]
    assert all(a < b for a, b in pairwise(times))
    assert [times[i] * 25 for i in (0, 1, 2, 4, 5, 7, 8)] == [0, 1, 2, 3, 5, 6, 7]
    clock = video_module._Clock(Fraction(1, 90000), Fraction(25))
    back = [clock.place(s) for s in (900000, 903600, 907200, 0, 3600, None, 10800)]
    assert [Fraction(b, 1024 * 3600) for b in back] == [0, 1, 2, 3, 4, 5, 6]


def test_frames_can_be_read_twice_at_the_same_time(make_video: Any) -> None:
    video = open_video(make_video("a.mp4", 12))
    for a, b in zip(video.frames(), video.frames(), strict=True):
        np.testing.assert_array_equal(a.picture.planes[0], b.picture.planes[0])


def test_audio_only_files_are_refused(make_wav: Any) -> None:
    with pytest.raises(InputError, match="no video"):
        open_video(make_wav("a.wav", np.zeros(1600)))
