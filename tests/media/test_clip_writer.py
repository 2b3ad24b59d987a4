"""A small clip from arrays can be read back."""

from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.errors import OutputError
from latentsync.media.clip_writer import write_clip


def test_a_clip_comes_back(tmp_path):
    levels = np.linspace(30, 220, 10)
    frames = np.repeat(levels[:, None, None, None], 3, axis=3).repeat(33, axis=1).repeat(48, axis=2).astype(np.uint8)
    sound = 0.5 * np.sin(2 * np.pi * 440 * np.arange(6400) / 16000)
    write_clip(tmp_path / "deep" / "a.mp4", frames, 25, sound.astype(np.float32))
    with av.open(str(tmp_path / "deep" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        assert (stream.width, stream.height) == (48, 32)
        back = [f.to_ndarray(format="rgb24").mean() for f in container.decode(stream)]
    assert np.allclose(back, levels, atol=3)
    with av.open(str(tmp_path / "deep" / "a.mp4")) as container:
        heard = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
        assert container.streams.audio[0].rate == 16000
    assert heard.size >= 6400
    assert 0.3 < np.sqrt(np.mean(heard[2000:5000] ** 2)) < 0.4
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.mp4"]


def test_without_sound_and_at_another_rate(tmp_path):
    write_clip(tmp_path / "a.mp4", np.zeros((5, 16, 16, 3), np.uint8), Fraction(30000, 1001))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
        assert not container.streams.audio


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_clip(tmp_path / "file" / "a.mp4", np.zeros((5, 16, 16, 3), np.uint8), 25)
