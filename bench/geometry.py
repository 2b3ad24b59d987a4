"""Cost of aligning a face and pasting it back, per frame, against the published system's figures.

    python bench/geometry.py [--out bench/results/geometry.md]

Faces are synthetic; only their size counts. Times are process CPU time on one thread, median of many runs. The picture is already decoded:
turning its region into RGB and writing the blend into its planes belong to the media room and are not counted.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from latentsync.face.align import alignment, crop, crop_size, template
from latentsync.face.mask import inpaint_mask
from latentsync.face.paste import paste

PUBLISHED_ALIGN = (0.06, 0.08)  # CPU-seconds per 1080p frame, two threads
PUBLISHED_PASTE = (0.44, 0.54)


class Pixels:
    """A decoded picture in memory."""

    pixel_aspect = 1

    def __init__(self, width: int, height: int) -> None:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        planes = [127 + 60 * np.sin(x / a) + 60 * np.sin(y / b) for a, b in ((7, 11), (13, 5), (9, 17))]
        self.array = np.stack(planes, 2).astype(np.uint8)
        self.width, self.height = width, height

    def rgb(self, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        x0, y0, x1, y1 = box or (0, 0, self.width, self.height)
        return self.array[y0:y1, x0:x1]


def cpu_ms(call: Callable[[], object], least: float = 1.0) -> float:
    """Median CPU milliseconds of one call."""
    call()
    times: list[float] = []
    while sum(times) < least or len(times) < 15:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times) * 1000


def placed(picture: Pixels, brows: float) -> np.ndarray:
    """(3, 2) alignment points of a face in the middle, turned by 10 degrees, its brow centres `brows` pixels apart."""
    upright = (template(256) - template(256).mean(0)) * brows / np.ptp(template(256)[:, 0])
    c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
    return upright @ np.array([[c, s], [-s, c]]) + [picture.width / 2, picture.height / 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "geometry.md")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pictures = [("1080p", Pixels(1920, 1080)), ("4K", Pixels(3840, 2160))]
    faces = (("a speaker, 250 px wide", 110.0), ("a close-up, 500 px wide", 220.0), ("a 4K close-up, 1000 px wide", 440.0))
    lines = [
        "## Alignment and paste, per frame",
        "",
        f"CPU milliseconds on one thread ({platform.machine()}, OpenCV {cv2.__version__}, NumPy {np.__version__}, torch {torch.__version__}).",
        f"Published: align and crop {PUBLISHED_ALIGN[0] * 1000:.0f}-{PUBLISHED_ALIGN[1] * 1000:.0f}, paste {PUBLISHED_PASTE[0] * 1000:.0f}-"
        f"{PUBLISHED_PASTE[1] * 1000:.0f} CPU-ms per 1080p frame; the ratios are to the middle of these.",
        "",
        "| face | frame | crop | align + crop | of published | paste, whole crop | of published | paste, generated part | of published |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    middle_align, middle_paste = sum(PUBLISHED_ALIGN) * 500, sum(PUBLISHED_PASTE) * 500
    for name, brows in faces:
        for frame, picture in pictures:
            if brows > 300 and frame == "1080p":
                continue  # it would be cut by the frame
            points = placed(picture, brows)
            for resolution in (256, 512):
                mask = inpaint_mask(resolution)
                matrix = alignment(points, resolution)
                face = crop(picture, matrix, resolution).astype(np.float32)
                size = picture.width, picture.height
                a = cpu_ms(lambda p=points, r=resolution, q=picture: crop(q, alignment(p, r), r))
                b = cpu_ms(lambda f=face, m=matrix, s=size: paste(f, m, *s))
                c = cpu_ms(lambda f=face, m=matrix, s=size, k=mask: paste(f, m, *s, mask=k))
                lines.append(
                    f"| {name} | {frame} | {resolution} | {a:.1f} | {a / middle_align:.2f} | {b:.1f} | {b / middle_paste:.3f} | {c:.1f} | "
                    f"{c / middle_paste:.3f} |"
                )
    lines += ["", *kept_part(), ""]
    text = "\n".join(lines)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(text)


def kept_part() -> list[str]:
    """What pasting does to the part of the face that is not generated: a detailed picture, cropped and pasted back unchanged."""
    picture = Pixels(1920, 1080)
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 60, picture.array.shape), (0, 0), 1.2)
    picture.array = np.clip(picture.array / 2 + 64 + noise, 0, 255).astype(np.uint8)
    lines = [
        "A face cropped and pasted back unchanged, mean error in levels over the part that is not generated (fine detail, face 250 px wide):",
        "",
        "| crop | whole crop pasted, as published | generated part only |",
        "| --- | --- | --- |",
    ]
    for resolution in (256, 512):
        mask = inpaint_mask(resolution)
        matrix = alignment(placed(picture, 110.0), resolution)
        face = crop(picture, matrix, resolution).astype(np.float32)
        errors = []
        whole = paste(face, matrix, 1920, 1080)
        for patch in (paste(face, matrix, 1920, 1080, published=True), paste(face, matrix, 1920, 1080, mask=mask)):
            x0, y0, x1, y1 = patch.box
            result = picture.array.astype(np.float32)
            alpha = patch.alpha[..., None]
            result[y0:y1, x0:x1] += alpha * (patch.rgb - result[y0:y1, x0:x1])
            x0, y0, x1, y1 = whole.box
            centres = np.stack([*np.meshgrid(np.arange(x0, x1), np.arange(y0, y1))], -1) @ matrix[:, :2].T + matrix[:, 2]
            column, row = np.clip(centres * resolution / crop_size(resolution), 0, resolution - 1).astype(int).transpose(2, 0, 1)
            kept = (mask[row, column] > 0.99) & (whole.alpha > 0.99)
            errors.append(float(np.abs(np.rint(result) - picture.array)[y0:y1, x0:x1][kept].mean()))
        lines.append(f"| {resolution} | {errors[0]:.2f} | {errors[1]:.2f} |")
    return lines


if __name__ == "__main__":
    main()
