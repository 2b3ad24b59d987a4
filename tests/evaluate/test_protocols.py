"""Which sound each video of a list is given: always the same, never its own where another's is asked for."""

from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import InputError, UsageError
from latentsync.evaluate import protocols
from latentsync.media.audio import open_audio


def test_partners_are_a_permutation_without_fixed_points() -> None:
    for count in (2, 3, 10, 57):
        given = protocols.partners(count, 1247)
        assert sorted(given) == list(range(count))
        assert all(a != b for a, b in enumerate(given))
    assert protocols.partners(10, 1247) == [2, 8, 6, 5, 0, 9, 1, 3, 7, 4]  # frozen: another pairing is another number
    assert protocols.partners(10, 1) != protocols.partners(10, 1247)


def test_sounds_of_the_presets(films: Path, tmp_path: Path) -> None:
    files = [films / n for n in ("short.mp4", "true.mp4", "silent.mp4")]
    made = protocols.pairs(protocols.load("reconstruction"), files, tmp_path)
    assert [(p.name, p.audio, p.reference) for p in made] == [(f.stem, f, f) for f in files]
    crossed = protocols.pairs(protocols.load("cross"), files, tmp_path)
    assert {p.audio for p in crossed} == set(files)
    assert all(p.audio != p.video and p.reference is None for p in crossed)
    with pytest.raises(UsageError, match="two videos at least"):
        protocols.pairs(protocols.load("cross"), files[:1], tmp_path)
    assert list(tmp_path.iterdir()) == []


def samples_of(path: Path | None) -> np.ndarray:
    assert path is not None
    return np.concatenate(list(open_audio(path).samples()))


def test_made_sounds_are_interrupted_or_long(films: Path, tmp_path: Path) -> None:
    files = [films / n for n in ("true.mp4", "short.mp4", "silent.mp4")]
    muted = protocols.interrupted(np.ones(16000 * 5, np.float32))
    assert [muted[int(t * 16000)] for t in (0.1, 1.9, 2.1, 3.9, 4.1)] == [1, 1, 0, 0, 1]
    made = protocols.pairs(protocols.load("silence"), files, tmp_path / "s")
    assert made[0].audio == tmp_path / "s" / "true.wav"
    assert len(samples_of(made[0].audio)) == pytest.approx(1.2 * 16000, abs=1100)
    assert not (tmp_path / "s" / "silent.wav").exists()  # that pair fails, and says why
    preset = protocols.Protocol("long", "", "endless", False, 1, ("sync",), 3.0)
    made = protocols.pairs(preset, files, tmp_path / "l")
    first = samples_of(made[0].audio)
    assert len(first) == 48000
    assert np.abs(first).max() > 0.01
    assert (samples_of(made[1].audio) != first).any()
    before = (tmp_path / "l" / "true.wav").stat().st_mtime_ns
    protocols.pairs(preset, files, tmp_path / "l")
    assert (tmp_path / "l" / "true.wav").stat().st_mtime_ns == before


def test_names_and_digests(films: Path) -> None:
    assert protocols.unique(["a", "b", "a"]) == ["a", "b", "a (2)"]
    one = protocols.digest([films / "true.mp4", films / "short.mp4"])
    assert one != protocols.digest([films / "short.mp4", films / "true.mp4"])
    assert one == protocols.digest([films / "true.mp4", films / "short.mp4"])
    with pytest.raises(InputError):
        protocols.digest([films / "nowhere.mp4"])
    with pytest.raises(UsageError, match="known ones are cross, long"):
        protocols.load("mine")
