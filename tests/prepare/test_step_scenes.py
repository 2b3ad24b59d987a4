"""A cut is found at its frame, wherever it lies; movement is none."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import pytest

from latentsync.errors import InputError
from latentsync.prepare.records import Span
from latentsync.prepare.steps import scenes
from tests.prepare.footage import make, moving, noise, other


def joined(*lengths: int):  # type: ignore[no-untyped-def]
    """Pictures of scenes that take turns."""
    borders = [sum(lengths[: i + 1]) for i in range(len(lengths))]

    def picture(k: int):  # type: ignore[no-untyped-def]
        return (moving, other)[sum(k >= b for b in borders) % 2](k, 128, 96)

    return picture


def spans(*borders: int) -> tuple[Span, ...]:
    return tuple(Span(Fraction(a, 25), Fraction(b, 25)) for a, b in itertools.pairwise(borders))


@pytest.mark.parametrize("lengths", [(40, 37), (1, 30), (30, 1), (20, 3, 20), (25, 25, 25)])
def test_cuts_at_their_frame(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    path = make(tmp_path / "a.mp4", sum(lengths), picture=joined(*lengths), sound=noise(1))
    borders = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert scenes.measure(path).spans == spans(*borders)


def test_movement_is_no_cut(tmp_path: Path) -> None:
    assert scenes.measure(make(tmp_path / "a.mp4", 60, picture=lambda k: moving(k, 128, 96))).spans == spans(0, 60)
    assert scenes.measure(make(tmp_path / "b.mp4", 1)).spans == spans(0, 1)


def test_at_another_rate_the_first_frame_belongs_to_the_new_scene(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 60, picture=joined(31, 29), rate=30)
    first, second = scenes.measure(path).spans
    assert first.end == second.start == Fraction(26, 25)  # frame 31 of 30 fps begins at 1.033 s; frame 26 at 25 fps is the first that shows it
    assert second.end == 2


def test_the_threshold_counts(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 40, picture=joined(20, 20))
    assert len(scenes.measure(path, threshold=2).spans) == 2
    assert len(scenes.measure(path, threshold=1000).spans) == 1


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(InputError):
        scenes.measure(tmp_path / "a.mp4")
