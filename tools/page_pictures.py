"""The pictures of the page in docs/images: `latentsync app` with the small model, two drawn people, one of them chosen, in a real browser.

    python tools/page_pictures.py docs/images

Takes the dev extra, and Chromium (LATENTSYNC_CHROMIUM, or on the path).
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from latentsync.app.server import Server, application
from latentsync.cli_serve import listen
from latentsync.jobs import Desk
from latentsync.media.audio import open_audio
from latentsync.media.clip_writer import write_clip
from latentsync.media.video import open_video
from latentsync.weights import shipped

FRAMES = 50  # of the clip
DESK, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
RATE = 16000


def two_people(folder: Path) -> tuple[Path, Path]:
    """The sample beside its mirror image, and the first seconds of its new sentence."""
    with open_video(shipped.folder() / "sample.mp4") as video:
        frames = np.stack([frame.picture.rgb() for frame, _ in zip(video.frames(), range(FRAMES), strict=False)])
    video_file, sound_file = folder / "two people.mp4", folder / "new sentence.mp4"
    write_clip(video_file, np.concatenate([frames, (frames[:, :, ::-1] * 0.85).astype(np.uint8)], axis=2), Fraction(25))
    spoken = np.concatenate(list(open_audio(shipped.folder() / "speech.m4a").samples()))[: RATE * FRAMES // 25]
    write_clip(sound_file, np.zeros((len(spoken) * 25 // RATE, 16, 16, 3), np.uint8), Fraction(25), spoken, RATE)
    return video_file, sound_file


def shot(page: Page, out: Path) -> None:
    """The whole page as a PNG of 256 colours."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(1500)
    page.screenshot(path=out, full_page=True)
    with Image.open(out) as picture:
        small = picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    small.save(out, optimize=True)


def choose(page: Page, video: Path, sound: Path) -> None:
    """Both files, and the face on the right."""
    page.set_input_files("#video input[type=file]", video)
    page.wait_for_selector(".face")
    page.locator(".face").nth(1).click()
    page.get_by_role("tab", name="From a video").click()
    page.set_input_files("#of-video input[type=file]", sound)
    page.wait_for_timeout(2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    chromium = os.environ.get("LATENTSYNC_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as scratch, Desk(models=("demo",)) as desk, listen("127.0.0.1", 0) as listener:
        video, sound = two_people(Path(scratch))
        with Server(application(desk, ("demo",)), listener) as server, sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_context(viewport=DESK, color_scheme="light").new_page()
            page.set_default_timeout(600_000)
            page.goto(server.address)
            page.wait_for_selector("#run")
            choose(page, video, sound)
            page.click("#run")
            page.wait_for_selector(".look")
            page.set_viewport_size(PHONE)
            page.emulate_media(color_scheme="dark")
            shot(page, out / "page-phone.png")
            page.wait_for_selector(".result")
            page.set_viewport_size(DESK)
            page.emulate_media(color_scheme="light")
            page.reload()
            page.wait_for_selector(".result")
            choose(page, video, sound)
            page.evaluate("document.querySelectorAll('.pair video').forEach((v) => { v.currentTime = 0.6 })")
            shot(page, out / "page.png")
            page.emulate_media(color_scheme="dark")
            shot(page, out / "page-dark.png")
            browser.close()


if __name__ == "__main__":
    main()
