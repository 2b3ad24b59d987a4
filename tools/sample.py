"""A sample of the project's own making: a drawn face that nods and blinks, a sound of vowels, and the exact place of the face in every frame.

    python tools/sample.py FOLDER [--seconds 4] [--size 320]

writes sample.mp4 (25 fps, H.264), speech.wav (16 kHz mono) and points.npz, whose `points` (n, 3, 2) are the alignment points in pixels: the
centres of the two brows, left one of the picture first, and of the nose. Nothing here shows a person or comes from one.
"""

from __future__ import annotations

import argparse
import wave
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

SKIN, SHADE, HAIR, LIPS, WHITE, DARK, SHIRT, WALL = (
    (226, 180, 150),
    (196, 146, 118),
    (70, 46, 34),
    (176, 84, 84),
    (244, 242, 238),
    (40, 28, 26),
    (62, 92, 128),
    (186, 200, 196),
)
# The face in its own units: x to the right, y down, origin between the eyes, one unit = half the width of the head.
BROWS = np.array([[-0.42, -0.30], [0.42, -0.30]])
NOSE = np.array([0.0, 0.42])
OVER = 3  # drawn this many times larger, then shrunk: smooth edges


def pose(t: float, size: int) -> tuple[np.ndarray, float]:
    """(2, 3) face units -> pixels at time t, and how far the mouth is open (0..1): slow nodding and swaying."""
    angle = 0.06 * np.sin(2 * np.pi * 0.31 * t)
    scale = size * (0.235 + 0.008 * np.sin(2 * np.pi * 0.17 * t))
    centre = size * np.array([0.5 + 0.02 * np.sin(2 * np.pi * 0.23 * t + 1), 0.42 + 0.012 * np.sin(2 * np.pi * 0.41 * t)])
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, centre[0]], [s, c, centre[1]]]), max(0.0, np.sin(2 * np.pi * 1.9 * t)) * 0.7


def points(t: float, size: int) -> np.ndarray:
    """(3, 2) float32: brow, brow, nose, in pixels."""
    m, _ = pose(t, size)
    return (np.vstack([BROWS, NOSE]) @ m[:, :2].T + m[:, 2]).astype(np.float32)


def draw(t: float, size: int) -> np.ndarray:
    """(size, size, 3) uint8 RGB: the face at time t."""
    m, opening = pose(t, size * OVER)
    unit = float(np.hypot(m[0, 0], m[1, 0]))
    angle = float(np.degrees(np.arctan2(m[1, 0], m[0, 0])))
    img = np.empty((size * OVER, size * OVER, 3), np.uint8)
    img[:] = (np.array(WALL) * np.linspace(1.05, 0.85, size * OVER)[:, None, None]).clip(0, 255)

    def at(x: float, y: float) -> tuple[int, int]:
        p = m[:, :2] @ np.array([x, y]) + m[:, 2]
        return int(round(p[0])), int(round(p[1]))

    def oval(x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int], a0: float = 0, a1: float = 360, thick: int = -1) -> None:
        cv2.ellipse(img, at(x, y), (int(rx * unit), int(ry * unit)), angle, a0, a1, colour, thick, cv2.LINE_AA)

    oval(0, 2.35, 1.75, 0.95, SHIRT)
    oval(0, 1.25, 0.42, 0.75, SHADE)
    oval(0, -0.12, 1.10, 1.28, HAIR)
    oval(0, 0.18, 0.98, 1.22, SKIN)
    oval(0, -0.85, 0.92, 0.38, HAIR)
    for side in (-1, 1):
        shut = abs((t + 0.7) % 2.3 - 0.08) < 0.08
        oval(side * 0.42, 0.0, 0.19, 0.02 if shut else 0.105, DARK if shut else WHITE)
        if not shut:
            oval(side * 0.42 + 0.03 * np.sin(t), 0.0, 0.085, 0.095, DARK)
        oval(side * 0.42, -0.22, 0.24, 0.11, HAIR, 200, 340, max(2, int(0.06 * unit)))
    oval(0, 0.36, 0.11, 0.22, SHADE, 20, 160, max(2, int(0.05 * unit)))
    oval(0, 0.44, 0.15, 0.09, SHADE)
    oval(0, 0.82, 0.34, 0.09 + 0.16 * opening, LIPS)
    oval(0, 0.82, 0.26, 0.02 + 0.13 * opening, DARK)
    if opening > 0.25:
        oval(0, 0.79 - 0.07 * opening, 0.19, 0.035, WHITE)
    return cv2.resize(img, (size, size), interpolation=cv2.INTER_AREA)


def speech(seconds: float, rate: int = 16000) -> np.ndarray:
    """(n,) float32: vowels at 130 Hz that change three times a second, with pauses. Formants by a sum of harmonics."""
    formants = [(730, 1090), (270, 2290), (300, 870), (530, 1840), (570, 840)]
    t = np.arange(int(seconds * rate)) / rate
    pitch = 130 + 12 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    which = (t * 3).astype(int) % len(formants)
    f1, f2 = np.array(formants)[which].T
    out = np.zeros_like(t)
    for k in range(1, 28):
        f = k * pitch
        out += np.sin(k * phase) * (np.exp(-(((f - f1) / 120) ** 2)) + 0.5 * np.exp(-(((f - f2) / 180) ** 2)) + 0.02) / k**0.3
    beat = np.clip(np.sin(np.pi * ((t * 3) % 1)), 0, 1) ** 0.5 * ((t % 2.0) < 1.7)
    return (0.3 * out * beat / np.abs(out).max()).astype(np.float32)


def make(folder: Path, seconds: float = 4.0, size: int = 320, fps: Fraction = Fraction(25), voice: float | None = None) -> None:
    """Write sample.mp4, speech.wav (`voice` seconds long, as the picture by default) and points.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    count = round(seconds * fps)
    times = [float(i / fps) for i in range(count)]
    with av.open(str(folder / "sample.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16", "preset": "veryfast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in times:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(t, size), format="rgb24")))
        container.mux(stream.encode())
    np.savez(folder / "points.npz", points=np.stack([points(t, size) for t in times]))
    with wave.open(str(folder / "speech.wav"), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(16000)
        f.writeframes((speech(voice or seconds) * 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--size", type=int, default=320)
    given = parser.parse_args()
    make(given.folder, given.seconds, given.size)
