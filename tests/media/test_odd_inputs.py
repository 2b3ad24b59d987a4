"""Broken, strange and mislabelled files: a clear message or a right result."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentsync.errors import InputError
from latentsync.media.audio import open_audio
from latentsync.media.video import open_video


@pytest.mark.parametrize("reader", [open_video, open_audio])
def test_files_that_are_not_media(tmp_path: Path, reader: Any) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("this is not a video\n" * 500)
    short = tmp_path / "short.mp4"
    short.write_text("x")
    noise = tmp_path / "noise.mkv"
    noise.write_bytes(np.random.default_rng(0).bytes(100_000))
    zeros = tmp_path / "zeros.wav"
    zeros.write_bytes(bytes(50_000))
    for path in (text, short, noise, zeros):
        with pytest.raises(InputError, match=path.name):
            reader(path)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(InputError, match="0 bytes"):
        reader(empty)
    with pytest.raises(InputError, match="no such file"):
        reader(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="folder"):
        reader(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        reader(Path(os.devnull))
    with pytest.raises(InputError):
        reader(tmp_path / ("x" * 300))
    with pytest.raises(InputError):
        reader(tmp_path / "nul\0.mp4")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match="not a regular file"):
        open_video(tmp_path / "pipe.mp4")


def test_unreadable_file(make_video: Any) -> None:
    path = make_video("a.mp4", 1)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("running as a user who may read everything")
    with pytest.raises(InputError, match="permission"):
        open_video(path)


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"])
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.txt"])
def test_playlists_do_not_open_other_files(make_video: Any, tmp_path: Path, text: str, name: str) -> None:
    target = make_video("a.mp4", 2)
    (tmp_path / name).write_text(text.format(target.name))
    with pytest.raises(InputError):
        open_video(tmp_path / name)


def test_mp4_without_its_index_says_so(make_video: Any) -> None:
    path = make_video("a.mp4", 60, size=(320, 240))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(InputError, match="moov"):
        open_video(path)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.avi", "fast.mp4"])
def test_a_file_cut_off_on_the_way_gives_what_decodes(make_video: Any, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    options = {"movflags": "+faststart"} if name.endswith("mp4") else {}
    path = make_video(name, 200, size=(160, 120), codec=codec, options={"g": "25"}, container_options=options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    video = open_video(path)
    frames = [f.index for f in video.frames()]
    assert 80 < len(frames) < 190
    if not name.endswith("ts"):  # a transport stream does not say how long it is meant to be
        assert any("cut off" in n for n in video.info.notes)
    assert [f.index for f in video.backwards()] == frames[::-1]


def test_damage_in_the_middle_is_passed_over(make_video: Any) -> None:
    path = make_video("a.mkv", 100, size=(160, 120), options={"g": "10"})
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at : at + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(bytes(data))
    video = open_video(path)
    frames = [f.index for f in video.frames()]
    assert len(frames) > 50
    assert [f.index for f in video.backwards()] == frames[::-1]


def test_cut_off_sound_gives_what_decodes(make_wav: Any) -> None:
    path = make_wav("a.wav", np.ones(16000) * 0.5)
    path.write_bytes(path.read_bytes()[:20044])
    assert open_audio(path).info.duration == Fraction(10000, 16000)
    path.write_bytes(path.read_bytes()[:44])
    with pytest.raises(InputError, match=r"a\.wav"):
        open_audio(path)


# stills


def png(path: Path, pixels: np.ndarray, pix_fmt: str) -> Path:
    with av.open(f"file:{path}", "w", format="image2", options={"update": "1"}) as out:
        stream: Any = out.add_stream("png", rate=25)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = pix_fmt
        out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, pix_fmt)))
        out.mux(stream.encode(None))
    return path


def first(path: Path) -> np.ndarray:
    video = open_video(path)
    assert video.info.is_still
    return next(iter(video.frames())).picture.rgb()


def test_png_pixels_are_exact(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    np.testing.assert_array_equal(first(png(tmp_path / "a.png", pixels, "rgb24")), pixels)


def test_opaque_alpha_is_exact_and_said(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    path = png(tmp_path / "a.png", pixels, "rgba")
    np.testing.assert_array_equal(first(path), pixels[..., :3])
    pixels[..., 3] = 0
    assert first(png(tmp_path / "b.png", pixels, "rgba")).min() == 255
    assert any("transparency" in n for n in open_video(path).info.notes)


def test_gray_and_16_bit_stills(tmp_path: Path) -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(first(png(tmp_path / "a.png", gray, "gray")), np.repeat(gray[..., None], 3, axis=2))
    deep = (np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).astype(np.uint16)
    np.testing.assert_array_equal(first(png(tmp_path / "b.png", deep, "gray16be"))[..., 0], gray)
    assert open_video(tmp_path / "b.png").info.bit_depth == 16


def exif(orientation: int) -> bytes:
    tiff = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, orientation, 0) + struct.pack(">I", 0)
    return b"Exif\0\0" + tiff


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(make_video: Any, tmp_path: Path, orientation: int) -> None:
    plain = make_video("plain.jpg", 1, codec="mjpeg", pix_fmt="yuvj444p", size=(40, 24))
    data = plain.read_bytes()
    body = exif(orientation)
    tagged = tmp_path / "tagged.jpg"
    tagged.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
    a = first(plain)
    turned = {
        1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1], 5: a.transpose(1, 0, 2), 6: np.rot90(a, -1),
        7: a.transpose(1, 0, 2)[::-1, ::-1], 8: np.rot90(a),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(first(tagged), turned)
    info = open_video(tagged).info
    assert (info.height, info.width) == turned.shape[:2]


def test_animated_gif_is_video_and_one_frame_gif_is_a_still(make_video: Any) -> None:
    moving = open_video(make_video("a.gif", 7, codec="gif", pix_fmt="rgb8", rate=10))
    assert not moving.info.is_still
    assert [f.time for f in moving.frames()] == [Fraction(k, 10) for k in range(7)]
    assert open_video(make_video("b.gif", 1, codec="gif", pix_fmt="rgb8", rate=10)).info.is_still


def test_webp_and_bmp_and_tiff_are_stills(make_video: Any) -> None:
    for name, codec, pix_fmt in [("a.webp", "libwebp", "yuv420p"), ("a.bmp", "bmp", "bgr24"), ("a.tiff", "tiff", "rgb24")]:
        if codec in av.codecs_available:
            assert open_video(make_video(name, 1, codec=codec, pix_fmt=pix_fmt)).info.is_still


def test_cover_art_is_no_video(tmp_path: Path, make_video: Any) -> None:
    cover = make_video("c.jpg", 1, codec="mjpeg", pix_fmt="yuvj420p")
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        sound: Any = out.add_stream("aac", rate=16000, layout="mono")
        with av.open(str(cover)) as given:
            picture: Any = out.add_stream_from_template(given.streams.video[0], opaque=True)
            picture.disposition = 1024
            packet = next(p for p in given.demux() if p.size)
            packet.stream = picture
            packet.pts = packet.dts = 0
            frame = av.AudioFrame.from_ndarray(np.full((1, 16000), 0.2, np.float32), "flt", "mono")
            frame.sample_rate = 16000
            packets = [*sound.encode(frame), *sound.encode(None)]
            out.mux(packet)
            for p in packets:
                out.mux(p)
    with pytest.raises(InputError, match="cover art"):
        open_video(path)
    assert open_audio(path).info.duration >= 1
