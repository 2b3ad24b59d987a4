"""What can be refused in a second is refused before gigabytes are loaded."""

from __future__ import annotations

from pathlib import Path

from latentsync import weights
from latentsync.face.given import GivenPoints
from latentsync.media.audio import open_audio
from latentsync.media.source import check_file
from latentsync.media.video import open_video
from latentsync.media.writer import VideoWriter, check_output
from latentsync.options import Options


def preflight(
    video: Path,
    audio: Path,
    out: Path,
    chosen: Options,
    *,
    overwrite: bool = False,
    points: Path | None = None,
    model: str | Path | None = None,
    preview: bool = False,
    face_backend: str | None = None,
    home: Path | None = None,
) -> None:
    """Raise what a job would raise for its inputs, its output, their names and absent weights, without loading a model or writing anything."""
    check_output(out, chosen.codec, chosen.crf, overwrite=overwrite, inputs=(video, audio))
    with open_video(video) as source:
        check_file(audio)
        if points is not None:
            GivenPoints(points, number=lambda frame: 0)
        if model is not None:
            weights.resolve(model, home=home, need=weights.roles(preview=preview, face_backend=face_backend, faces=points is None))
        sound = open_audio(audio, beside=video)  # the slowest here: it is decoded once
        chosen.check_spans(sound.info.duration)
        VideoWriter(out, source.info, audio=sound, length=None, codec=chosen.codec, crf=chosen.crf, overwrite=overwrite, rate=chosen.fps)
