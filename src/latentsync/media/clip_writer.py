"""A small clip from arrays, for what training and evaluation show: H.264 in MP4 with mono AAC. Films go through `writer.VideoWriter`."""

from __future__ import annotations

import contextlib
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from latentsync.errors import OutputError


def write_clip(path: Path, frames: np.ndarray, rate: Fraction | int, samples: np.ndarray | None = None, sample_rate: int = 16000) -> None:
    """Write frames (n, h, w, 3) uint8 RGB at `rate` frames a second, with mono float samples (m,) in -1..1 as their sound.

    Odd sizes lose their last row or column (4:2:0 needs even ones). The file appears whole or not at all; one that exists is replaced.
    Raises OutputError where it cannot be written.
    """
    scratch = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(scratch), "w", format="mp4") as container:
            height, width = (side // 2 * 2 for side in frames.shape[1:3])
            picture: Any = container.add_stream("libx264", rate=Fraction(rate), options={"crf": "18", "preset": "veryfast"})
            picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
            sound: Any = None
            if samples is not None:
                sound = container.add_stream("aac", rate=sample_rate, layout="mono")
            for frame in frames:
                cut = np.ascontiguousarray(frame[:height, :width])
                container.mux(picture.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
            container.mux(picture.encode())
            if sound is not None:
                block = av.AudioFrame.from_ndarray(np.asarray(samples, np.float32)[None], format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = sample_rate, 0, Fraction(1, sample_rate)
                container.mux(sound.encode(block))
                container.mux(sound.encode())
        scratch.replace(path)
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
