"""The clip that training reads is the crop that inference sees, with its matrices and the sound of just that moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

from latentsync.errors import InputError, UsageError
from latentsync.face.align import alignment, crop, crop_size, template
from latentsync.face.points import anchor_points
from latentsync.face.protocols import Face, FaceBackend
from latentsync.face.track import Tracker
from latentsync.media.clip import frames_between, probe, read_audio, read_frames
from latentsync.prepare.records import Span
from latentsync.prepare.steps import align, check, faces
from latentsync.prepare.steps.faces import Faces
from latentsync.train.clips import ClipSet
from tests.prepare.footage import NAMES, make, noise

FIRST, FRAMES = 3, 12
SPAN = Span(Fraction(FIRST, 25), Fraction(FIRST + FRAMES, 25))


class Footage(NamedTuple):
    """A file, what was found in a span of it, and the clip."""

    path: Path
    faces: Faces
    clip: Path


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory, head: Callable[..., np.ndarray], finder: FaceBackend) -> Footage:
    folder = tmp_path_factory.mktemp("footage")
    path = make(folder / NAMES[0], 18, picture=head, sound=noise(0.96), sound_codec="flac")
    found = faces.measure(path, SPAN, folder / "faces.npz", backend=finder)
    made = align.measure(path, SPAN, found, folder / NAMES[1])
    assert (made.path, made.matrices, made.frames) == (folder / NAMES[1], (folder / NAMES[1]).with_suffix(".npz"), FRAMES)
    return Footage(path, found, made.path)


def read(path: Path, count: int = FRAMES) -> np.ndarray:
    return read_frames(path, [Fraction(k, 25) for k in range(count)])


def anchors(landmarks: np.ndarray) -> np.ndarray:
    return np.stack([anchor_points(Face((0, 0, 1, 1), 1.0, points)) for points in landmarks])


def test_the_pictures_are_those_of_inference(footage: Footage, finder: FaceBackend) -> None:
    frames = frames_between(footage.path, *SPAN, 25)
    tracked = Tracker(finder).track(frames, lambda f: f.picture)
    wanted = [crop(t.frame.picture, alignment(t.points, 256), 256) for t in tracked if t.points is not None]
    clip = read(footage.clip)
    assert clip.shape == (FRAMES, 256, 256, 3)
    noise_power = np.mean((clip.astype(float) - np.stack(wanted)) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / noise_power)).min() > 40


def test_the_face_lies_where_the_template_says(footage: Footage) -> None:
    with np.load(footage.clip.with_suffix(".npz")) as file:
        assert sorted(file.files) == ["landmarks", "matrix"]
        matrix, landmarks = file["matrix"], file["landmarks"]
    assert matrix.shape == (FRAMES, 2, 3)
    assert matrix.dtype == np.float64
    with np.load(footage.faces.landmarks) as file:  # type: ignore[arg-type]
        found = file["landmarks"]
    assert np.allclose(landmarks, np.einsum("nij,npj->npi", matrix[..., :2], found) + matrix[:, None, :, 2], atol=1e-3)
    wanted = (template(256) + 0.5) * 256 / np.array(crop_size(256)) - 0.5
    assert np.abs(anchors(landmarks) - wanted).mean() < 10  # the head is turned up; a similarity brings three points there only roughly


def test_the_sound_is_that_of_the_span(footage: Footage) -> None:
    first = round(SPAN.start * 16000)
    found, wanted = read_audio(footage.clip), read_audio(footage.path)[first : first + FRAMES * 640]
    assert len(found) == FRAMES * 640
    assert np.array_equal(found, wanted)


def test_training_takes_it(footage: Footage) -> None:
    found = check.measure(footage.clip)
    assert (found.problem, found.fps, found.variable, found.frames) == ("", 25, False, FRAMES)
    clips = ClipSet.open(footage.clip.parent, frames=4, resolution=256, on_bad="skip")
    assert [(c.path.name, c.frames) for c in clips] == [(footage.clip.name, FRAMES)]
    with av.open(f"file:{footage.clip}") as container:
        assert any(p.is_keyframe and p.pts == 0 for p in container.demux(video=0))


def test_512_and_again(footage: Footage, tmp_path: Path) -> None:
    large = align.measure(footage.path, SPAN, footage.faces, tmp_path / "a.mp4", size=512)
    assert read(large.path, 1).shape == (1, 512, 512, 3)
    before = footage.clip.read_bytes(), footage.clip.with_suffix(".npz").read_bytes()
    align.measure(footage.path, SPAN, footage.faces, footage.clip)
    assert (footage.clip.read_bytes(), footage.clip.with_suffix(".npz").read_bytes()) == before


def test_the_frame_stays_whole(footage: Footage, tmp_path: Path) -> None:
    made = align.measure(footage.path, SPAN, footage.faces, tmp_path / "whole.mp4", crop=False)
    whole, source = read(made.path), read_frames(footage.path, [Fraction(k + FIRST, 25) for k in range(FRAMES)])
    assert whole.shape == source.shape
    assert 10 * np.log10(255**2 / np.mean((whole.astype(float) - source) ** 2)) > 42
    with np.load(made.matrices) as file, np.load(footage.clip.with_suffix(".npz")) as cropped, np.load(footage.faces.landmarks) as found:  # type: ignore[arg-type]
        assert np.array_equal(file["matrix"], cropped["matrix"])
        assert np.array_equal(file["landmarks"], found["landmarks"])


def test_pixels_that_are_not_square(footage: Footage, tmp_path: Path, head: Callable[..., np.ndarray]) -> None:
    """Squeezed to half its width, the face comes out as wide as it was; with the whole frame, the frame does."""
    path = make(tmp_path / "a.mp4", 18, picture=lambda k: head(k)[:, ::2], aspect=Fraction(2), crf=4, sound=noise(0.96))
    with np.load(footage.faces.landmarks) as file:  # type: ignore[arg-type]
        landmarks, present = file["landmarks"], file["present"]
    np.savez(tmp_path / "faces.npz", landmarks=(landmarks + 0.5) / [2, 1] - 0.5, present=present)
    found = replace(footage.faces, landmarks=tmp_path / "faces.npz")
    crops, whole = (align.measure(path, SPAN, found, tmp_path / f"{c}.mp4", crop=c) for c in (True, False))
    assert np.abs(read(crops.path).astype(float) - read(footage.clip)).mean() < 4
    assert (probe(whole.path).width, probe(whole.path).height, probe(whole.path).pixel_aspect) == (320, 320, 1)
    with np.load(whole.matrices) as file:
        assert np.abs(file["landmarks"] - landmarks).max() < 1e-3


def test_what_cannot_be_made_leaves_nothing(footage: Footage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shows no face"):
        align.measure(footage.path, SPAN, replace(footage.faces, landmarks=None), tmp_path / "a.mp4")
    with pytest.raises(InputError, match="cannot read"):
        align.measure(footage.path, SPAN, replace(footage.faces, landmarks=tmp_path / "gone.npz"), tmp_path / "a.mp4")
    with pytest.raises(UsageError, match="even number"):
        align.measure(footage.path, SPAN, footage.faces, tmp_path / "a.mp4", size=255)
    with pytest.raises(InputError, match="file changed"):
        align.measure(footage.path, Span(SPAN.start, SPAN.end - Fraction(2, 25)), footage.faces, tmp_path / "a.mp4")
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".npz"] == []
