"""Random access to clips: the frame shown at a time is the one that decoding from the beginning shows, however the file is made."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentsync.errors import InputError
from latentsync.media import clip as clip_module
from latentsync.media.clip import probe, read_audio, read_frames
from latentsync.media.video import open_video

SIDE = 64


def numbered(width: int, height: int, k: int) -> np.ndarray:
    """(h, w, 3): the number of the frame as eight black or white bars in the upper half, a moving slope below, so that frames need one another."""
    y, x = np.mgrid[0:height, 0:width]
    out = np.stack((x * 3, y * 3, (x + y + 5 * k) % 256), axis=-1).clip(0, 255).astype(np.uint8)
    bars = (k >> (np.arange(width) * 8 // width)) & 1
    out[: height // 2] = (bars * 255).astype(np.uint8)[None, :, None]
    return out


def number(rgb: np.ndarray) -> int:
    """The number drawn in a frame (h, w, 3)."""
    height, width = rgb.shape[:2]
    row = rgb[height // 8 : height // 4].mean(axis=(0, 2)).reshape(8, width // 8).mean(axis=1)
    return int(((row > 128) << np.arange(8)).sum())


def sequential(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    """(time, RGB) of every frame, from the beginning."""
    with open_video(path) as video:
        return [(f.time, f.picture.rgb()) for f in video.frames()]


def slack(path: Path) -> Fraction:
    info = open_video(path).info
    return info.time_base if info.rate and 4 * info.time_base * info.rate <= 1 else Fraction(0)


def shown_at(frames: list[tuple[Fraction, np.ndarray]], time: Fraction, slack: Fraction) -> np.ndarray:
    return [picture for begin, picture in frames if begin <= time + slack][-1]


KINDS = [
    ("closed.mp4", "libx264", {"g": "12", "bf": "3"}, "yuv420p"),
    ("pyramid.mp4", "libx264", {"g": "12", "bf": "5", "x264-params": "b-pyramid=normal:ref=4"}, "yuv420p"),
    ("open.mp4", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"}, "yuv420p"),
    ("open.mkv", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}, "yuv420p"),
    ("open.ts", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}, "yuv420p"),
    ("refresh.mp4", "libx264", {"g": "12", "x264-params": "intra-refresh=1:bframes=0"}, "yuv420p"),
    ("refresh.mkv", "libx264", {"g": "12", "x264-params": "intra-refresh=1:bframes=2"}, "yuv420p"),
    ("intra.mp4", "libx264", {"g": "1"}, "yuv420p"),
    ("long.mp4", "libx264", {"g": "1000", "bf": "2"}, "yuv420p"),
    ("hevc.mp4", "libx265", {"x265-params": "log-level=none:keyint=10:open-gop=1:bframes=3"}, "yuv420p10le"),
    ("hevc.mkv", "libx265", {"x265-params": "log-level=none:keyint=10:open-gop=1:bframes=4:b-adapt=0"}, "yuv420p"),
    ("mpeg4.mp4", "mpeg4", {"g": "10", "bf": "2"}, "yuv420p"),
    ("mpeg4.avi", "mpeg4", {"g": "10", "bf": "2"}, "yuv420p"),
    ("mpeg2.mpg", "mpeg2video", {"g": "10", "bf": "2"}, "yuv420p"),
    ("raw.h264", "libx264", {"g": "12", "bf": "3"}, "yuv420p"),
    ("ffv1.mkv", "ffv1", {}, "yuv422p"),
    ("mjpeg.mov", "mjpeg", {}, "yuvj420p"),
    ("vp8.webm", "libvpx", {"g": "12", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"}, "yuv420p"),
    ("vp9.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"}, "yuv420p"),
    ("av1.mp4", "libsvtav1", {"g": "12", "preset": "12", "svtav1-params": "lookahead=0"}, "yuv420p"),
]


@pytest.mark.parametrize(("name", "codec", "options", "pix_fmt"), KINDS, ids=[k[0] for k in KINDS])
def test_every_frame_of_every_kind_of_file(make_video: Any, name: str, codec: str, options: Any, pix_fmt: str) -> None:
    """Each frame on its own, in order and by random sets, is bit for bit that of a decoder which began at the beginning."""
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec}")
    path = make_video(name, 61, size=(SIDE, SIDE), codec=codec, options=options, pix_fmt=pix_fmt, picture=numbered)
    frames = sequential(path)
    assert len(frames) >= 59  # a raw stream's decoder may hold back its last frames
    assert len({number(picture) for _, picture in frames}) == len(frames), "the numbers should be readable, or this test sees little"
    step = slack(path)
    times = [begin for begin, _ in frames]
    for k in range(0, len(frames), 1 if name in ("open.mp4", "refresh.mp4", "pyramid.mp4") else 5):
        np.testing.assert_array_equal(read_frames(path, [times[k]])[0], frames[k][1])
    np.testing.assert_array_equal(read_frames(path, times), np.stack([picture for _, picture in frames]))
    choose = random.Random(1)
    for _ in range(6):
        some = [choose.choice(times) + choose.choice([0, 0, Fraction(1, 90), Fraction(1, 30)]) for _ in range(choose.randint(1, 9))]
        some = [t for t in some if t < times[-1]]
        got = read_frames(path, some)
        assert [number(g) for g in got] == [number(shown_at(frames, t, step)) for t in some]
        np.testing.assert_array_equal(got, np.stack([shown_at(frames, t, step) for t in some]) if some else got)


def test_fast_where_it_can_be(make_video: Any, monkeypatch: Any) -> None:
    """The usual files never fall back to decoding from the beginning, and decode no more than one group of pictures for one frame."""
    decoded = []
    original = clip_module._Clip._frames_of
    monkeypatch.setattr(clip_module._Clip, "_frames_of", lambda self, packet: decoded.append(packet.pts) or original(self, packet))
    monkeypatch.setattr(clip_module._Clip, "_sequential", lambda *a: pytest.fail("decoded from the beginning"))
    for name, codec, options, pix_fmt in KINDS:
        if codec not in av.codecs_available or not name.endswith((".mp4", ".mkv", ".mov")) or name.startswith("refresh"):
            continue
        path = make_video(name, 61, size=(SIDE, SIDE), codec=codec, options=options, pix_fmt=pix_fmt, picture=numbered)
        for k in range(61):
            decoded.clear()
            read_frames(path, [Fraction(k, 25)])
            assert name == "long.mp4" or name.startswith("av1") or len(decoded) <= 2 * 12 + 14, (
                name
            )  # the first frame is decoded to describe the file


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(24), Fraction(30000, 1001), Fraction(30), Fraction(50), Fraction(60)], ids=str)
def test_25_frames_a_second_from_any_rate(make_video: Any, rate: Fraction, suffix: str) -> None:
    path = make_video(f"a.{suffix}", 70, size=(SIDE, SIDE), rate=rate, options={"g": "20", "bf": "2"}, picture=numbered)
    frames = sequential(path)
    times = [Fraction(i, 25) for i in range(int(70 / rate * 25))]
    got = [number(f) for f in read_frames(path, times)]
    assert got == [number(shown_at(frames, t, slack(path))) for t in times]
    within = Fraction(3, 2000)  # Matroska's tick, and half of one by rounding
    assert all(int((t - within) * rate) <= k <= int((t + within) * rate) for t, k in zip(times, got, strict=True))


def test_variable_frame_rate(make_video: Any) -> None:
    times = [Fraction(k * k + 3 * k, 600) for k in range(40)]
    path = make_video("a.mp4", 40, size=(SIDE, SIDE), times=times, time_base=Fraction(1, 600), options={"g": "9", "bf": "2"}, picture=numbered)
    asked = [Fraction(i, 25) for i in range(int(times[-1] * 25))]
    random.Random(2).shuffle(asked)
    assert [number(f) for f in read_frames(path, asked)] == [max(k for k in range(40) if times[k] <= t) for t in asked]


def test_time_zero_is_the_first_frame_wherever_it_lies(make_video: Any) -> None:
    """A file whose pictures begin 1.2 s after its clock, and one whose first frames an edit list hides."""
    late = make_video("late.mkv", 30, size=(SIDE, SIDE), times=[Fraction(6, 5) + Fraction(k, 25) for k in range(30)], time_base=Fraction(1, 1000),
                      options={"g": "10", "bf": "2"}, picture=numbered)  # fmt: skip
    assert open_video(late).info.start > 1
    assert [number(f) for f in read_frames(late, [Fraction(k, 25) for k in range(30)])] == list(range(30))
    assert probe(late).duration == Fraction(30, 25)

    hidden = make_video("hidden.mp4", 40, size=(SIDE, SIDE), times=[Fraction(k - 7, 25) for k in range(40)], options={"g": "10", "bf": "2"},
                        picture=numbered)  # fmt: skip
    frames = sequential(hidden)
    first = number(frames[0][1])
    assert 40 - first == len(frames)
    for k in range(len(frames)):
        assert number(read_frames(hidden, [Fraction(k, 25)])[0]) == first + k


@pytest.mark.parametrize("degrees", [-90, 180, 90])
def test_rotated_pictures_stand_upright(make_video: Any, degrees: int) -> None:
    path = make_video("turned.mp4", 20, size=(SIDE, 48), rotation=degrees, options={"g": "6"}, picture=numbered)
    frames = sequential(path)
    info = probe(path)
    assert (info.height, info.width) == frames[0][1].shape[:2]
    for k in (0, 7, 19):
        np.testing.assert_array_equal(read_frames(path, [Fraction(k, 25)])[0], frames[k][1])


def test_far_places_are_sought(make_video: Any, monkeypatch: Any) -> None:
    """In a long file a far frame costs the packets of its own group of pictures, and is still the right one."""
    monkeypatch.setattr(clip_module, "_FAR", Fraction(1, 2))
    read = []
    original = clip_module._Walk._read
    monkeypatch.setattr(clip_module._Walk, "_read", lambda self, target: read.append(target) or original(self, target))
    for name, options in (("a.mp4", {"g": "12", "bf": "3"}), ("b.mkv", {"g": "12", "bf": "3", "x264-params": "open-gop=1"})):
        path = make_video(name, 250, size=(SIDE, SIDE), options=options, picture=numbered)
        for k in (13, 60, 119, 200, 249):
            read.clear()
            assert number(read_frames(path, [Fraction(k, 25)])[0]) == k
            assert len(read) < 60
        asked = [240, 3, 4, 100, 101, 180, 239]
        assert [number(f) for f in read_frames(path, [Fraction(k, 25) for k in asked])] == asked


def test_false_key_frames_do_not_mislead(make_video: Any) -> None:
    """Without its list of key frames every packet of an MP4 counts as one, which is not true: the frames are still right."""
    path = make_video("a.mp4", 40, size=(SIDE, SIDE), codec="mpeg4", options={"g": "1000", "bf": "0"}, picture=numbered)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    with av.open(str(path)) as made:
        assert all(p.is_keyframe for p in made.demux(video=0) if p.size)
    assert [number(read_frames(path, [Fraction(k, 25)])[0]) for k in range(0, 40, 3)] == list(range(0, 40, 3))


def test_sizes(make_video: Any) -> None:
    path = make_video("a.mp4", 3, size=(SIDE, SIDE), picture=numbered)
    whole = read_frames(path, [Fraction(0)])
    assert whole.shape == (1, SIDE, SIDE, 3)
    half = read_frames(path, [Fraction(0), Fraction(1, 25)], side=32)
    assert half.shape == (2, 32, 32, 3)
    assert np.abs(half[0].astype(float) - whole[0].reshape(32, 2, 32, 2, 3).mean((1, 3))).mean() < 2  # areas are averaged
    assert read_frames(path, [Fraction(0)], side=100).shape == (1, 100, 100, 3)
    assert read_frames(path, []).shape == (0, SIDE, SIDE, 3)
    wide = make_video("b.mp4", 3, size=(96, 48), picture=numbered)
    assert read_frames(wide, [Fraction(0)], side=32).shape == (1, 32, 32, 3)


def test_what_a_clip_holds(make_video: Any) -> None:
    sound = 0.3 * np.sin(np.arange(32000) / 9)
    info = probe(make_video("a.mp4", 50, size=(SIDE, SIDE), sound=sound, picture=numbered))
    assert (info.width, info.height, info.pixel_aspect, info.fps, info.frames, info.duration) == (SIDE, SIDE, 1, 25, 50, 2)
    assert info.audio
    assert info.audio_rate == 16000
    assert abs(info.audio_duration - 2) < 0.1
    silent = probe(make_video("b.mkv", 50, size=(SIDE, 48), rate=50))
    assert (silent.audio, silent.audio_rate, silent.audio_duration) == (False, 0, 0)
    assert (silent.height, silent.fps, silent.duration) == (48, 50, 1)
    short = probe(make_video("c.mkv", 100, size=(SIDE, SIDE), sound=sound, options={"g": "10"}))
    assert abs(short.audio_duration - 2) < 0.1
    assert abs(short.duration - 4) < 0.1


@pytest.mark.parametrize("suffix", ["avi", "mpg", "ts", "mkv", "mov", "h264"])
def test_any_container_is_measured(make_video: Any, suffix: str) -> None:
    codec = "mpeg2video" if suffix == "mpg" else "libx264"
    info = probe(make_video(f"a.{suffix}", 50, size=(SIDE, SIDE), codec=codec, options={"g": "10", "bf": "2"}))
    assert abs(info.duration - 2) <= Fraction(3, 25)
    assert abs(info.frames - 50) <= 3


def test_sound_stands_beside_the_pictures(make_video: Any) -> None:
    sound = np.zeros(32000)
    sound[16000:16400] = 0.8
    for name in ("a.mp4", "b.mkv"):
        got = read_audio(make_video(name, 50, size=(SIDE, SIDE), sound=sound))
        assert got.dtype == np.float32
        assert abs(np.abs(got).cumsum().searchsorted(np.abs(got).sum() / 2) - 16200) < 100
    with pytest.raises(InputError, match="holds no sound"):
        read_audio(make_video("c.mp4", 5))


def test_a_changed_file_is_seen_anew(make_video: Any, tmp_path: Path) -> None:
    path = tmp_path / "now.mp4"
    path.write_bytes(make_video("a.mp4", 10, size=(SIDE, SIDE), picture=numbered).read_bytes())
    assert read_frames(path, [Fraction(0)]).shape == (1, SIDE, SIDE, 3)
    path.write_bytes(make_video("b.mp4", 30, size=(SIDE, 48), times=[2 + Fraction(k, 25) for k in range(30)], picture=numbered).read_bytes())
    assert [number(f) for f in read_frames(path, [Fraction(20, 25)])] == [20]
    assert read_frames(path, [Fraction(0)]).shape == (1, 48, SIDE, 3)


# Bad files


def test_a_cut_off_file_is_named(make_video: Any, tmp_path: Path) -> None:
    """With its index at the front, a cut-off file still opens and claims its whole length."""
    whole = make_video("a.mp4", 100, size=(SIDE, SIDE), options={"g": "10", "bf": "2"}, sound=0.3 * np.sin(np.arange(64000) / 9),
                       container_options={"movflags": "+faststart"}, picture=numbered)  # fmt: skip
    data = whole.read_bytes()
    for share in (0.4, 0.6, 0.8):
        cut = tmp_path / f"cut{share}.mp4"
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match=r"cut0.*is cut off: it says 4\.0"):
            probe(cut)
        with pytest.raises(InputError, match="cut0"):
            read_frames(cut, [Fraction(95, 25)])
        assert number(read_frames(cut, [Fraction(3, 25)])[0]) == 3  # what is there is still readable
    no_index = tmp_path / "no_index.mp4"
    no_index.write_bytes(make_video("b.mp4", 100, size=(SIDE, SIDE)).read_bytes()[:-4000])
    with pytest.raises(InputError, match="no index"):
        probe(no_index)


def test_damage_in_the_middle_is_named_and_the_rest_is_read(make_video: Any) -> None:
    path = make_video("a.mp4", 60, size=(SIDE, SIDE), options={"g": "10", "bf": "0"}, picture=numbered)
    with av.open(str(path)) as container:
        at = next((p.pos, p.size) for p in container.demux(video=0) if p.pts is not None and p.pts * p.time_base == Fraction(33, 25))
    data = bytearray(path.read_bytes())
    data[at[0] + 4 : at[0] + at[1]] = bytes(at[1] - 4)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.mp4.*damaged"):
        read_frames(path, [Fraction(33, 25)])
    assert number(read_frames(path, [Fraction(5, 25)])[0]) == 5
    assert number(read_frames(path, [Fraction(52, 25)])[0]) == 52  # begins at a key frame behind the damage


def test_times_outside(make_video: Any) -> None:
    path = make_video("a.mp4", 10, size=(SIDE, SIDE), picture=numbered)
    assert number(read_frames(path, [Fraction(399, 1000)])[0]) == 9  # the last frame lasts as long as the others
    with pytest.raises(InputError, match=r"a\.mp4 ends at 0\.40 s; a frame at 0\.40 s was asked for"):
        read_frames(path, [Fraction(10, 25)])
    with pytest.raises(ValueError, match="before it"):
        read_frames(path, [Fraction(-1, 25)])


def test_files_that_are_no_clips(tmp_path: Path, make_wav: Any, make_video: Any) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("these are notes")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    gone = make_video("gone.mp4", 5)
    gone.unlink()
    wrong = [
        (text, "not an audio, video or image"),
        (empty, "is empty"),
        (gone, "no such file"),
        (tmp_path, "is a folder"),
        (make_wav("a.wav", np.zeros(1600)), "holds no video"),
        (make_video("a.png", 1, codec="png", pix_fmt="rgb24"), "still"),
    ]
    for path, why in wrong:
        for act in (probe, lambda p: read_frames(p, [Fraction(0)])):
            with pytest.raises(InputError, match=why):
                act(path)
