"""The page in a real browser: what a visitor does, with the model that comes with the package; what goes wrong; and who sees what."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from latentsync.app.visitors import COOKIE, owner

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("LATENTSYNC_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install Debian's chromium, or set LATENTSYNC_CHROMIUM"),
    pytest.mark.xdist_group("page"),
]
PATIENCE = 120_000  # ms: a loaded machine is slow
NOISE = ("Method not implemented.",)  # Gradio's own, whenever an answer was read to its end


class Visit:
    """One visitor's browser: the page, what it complained of, and what it asked other hosts for."""

    def __init__(self, browser: Any, address: str, width: int = 1280, scheme: str = "light") -> None:
        self.address = address
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") and m.text not in NOISE else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("response", lambda r: self.wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else self.elsewhere.append(r.url))
        self.open()

    def open(self) -> None:
        with self.page.expect_response("**/run/predict*"):  # the page asks what to show, and so is ready
            self.page.goto(self.address)
        self.page.get_by_role("button", name="Make the lips move").wait_for()
        self.page.locator(".empty, .status, .result").first.wait_for()

    def video(self, path: Path) -> None:
        self.page.set_input_files("#video input[type=file]", path)

    def sound(self, path: Path) -> None:
        self.page.set_input_files("#sound input[type=file]", path)
        self.page.locator("#sound [data-testid=waveform-Sound], #sound button[aria-label=Clear]").first.wait_for()

    def run(self) -> None:
        self.page.get_by_role("button", name="Make the lips move").click()

    def says(self, text: str) -> None:
        self.page.locator("#notice, #about, #status").get_by_text(text).first.wait_for()

    def owner(self) -> str:
        value = next(c["value"] for c in self.context.cookies() if c["name"] == COOKIE)
        return owner(f"{COOKIE}={value}")

    def get(self, path: str) -> Any:
        return self.context.request.get(self.address + path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, page: tuple[str, Any]) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def go(**more: Any) -> Visit:
        visits.append(Visit(browser, page[0], **more))
        return visits[-1]

    yield go
    for one in visits:
        one.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_fits_and_asks_nobody_else_for_anything(visit, width, scheme):
    v = visit(width=width, scheme=scheme)
    v.page.get_by_text("Settings", exact=True).click()
    v.page.get_by_text("For experts").click()
    v.page.get_by_label("Sampler").wait_for()
    assert (v.wrong, v.elsewhere) == ([], [])
    assert v.page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    ink, paper = (
        v.page.evaluate(f"getComputedStyle(document.querySelector('{at}')).{name}")
        for at, name in ((".step h2", "color"), ("body", "backgroundColor"))
    )
    brightness = [np.mean([int(float(n)) for n in colour[colour.index("(") + 1 : -1].split(",")[:3]]) for colour in (ink, paper)]
    assert (brightness[0] < 70 and brightness[1] > 200) if scheme == "light" else (brightness[0] > 200 and brightness[1] < 60)
    unnamed = v.page.evaluate(
        "[...document.querySelectorAll('button, a[href], input:not([type=hidden]):not([type=file]), select, textarea')]"
        ".filter(e => e.offsetParent && !(e.innerText.trim() || e.ariaLabel || e.title || e.getAttribute('aria-labelledby')"
        " || (e.labels && e.labels.length))).map(e => e.outerHTML.slice(0, 120))"
    )
    assert unnamed == [], "everything that can be used has a name for screen readers"


def test_from_files_to_a_result_and_nobody_else_sees_it(visit, heads, page, tmp_path):
    desk = page[1]
    v = visit()
    v.video(heads / "two.mp4")
    second = v.page.get_by_role("button", name="Face 2 of 2")
    second.wait_for()
    second.focus()
    v.page.keyboard.press("Enter")
    v.page.get_by_text("Face 2 will speak").wait_for()
    v.page.locator(".faces").screenshot(path=tmp_path / "faces.png")
    assert cv2.imread(str(tmp_path / "faces.png")).std() > 20, "a picture, not blank paper"
    box, frame = second.bounding_box(), v.page.locator(".faces .frame").bounding_box()
    assert frame["x"] + frame["width"] / 2 < box["x"] < box["x"] + box["width"] < frame["x"] + frame["width"]
    v.sound(heads / "voice.wav")
    v.page.get_by_text("Fast look").click()
    v.run()
    v.page.get_by_role("progressbar", name="Progress").wait_for()
    assert v.page.get_by_role("button", name="Cancel", exact=True).is_visible()
    v.page.locator(".result").wait_for()
    assert (v.wrong, v.elsewhere) == ([], [])

    job = desk.jobs(v.owner())[0]
    assert float(job.request.options["face"].split(",")[0]) > 320, "the face that was chosen, not the largest or the first"
    assert (job.request.options["steps"], job.request.options["scheduler"]) == (4, "dpm++")
    assert job.names == {"video.mp4": "two.mp4", "audio.wav": "voice.wav"}
    assert (job.result["frames"], job.result["frames_with_face"]) == (10, 10)

    v.page.get_by_role("button", name="Play both").click()
    v.page.wait_for_function("document.querySelector('video.after').ended && document.querySelector('video.before').currentTime > 0.2")
    assert v.page.evaluate("[...document.querySelectorAll('.pair video')].map(v => v.videoWidth)") == [640, 640]
    v.page.get_by_role("button", name="Original sound").click()
    assert v.page.evaluate("[...document.querySelectorAll('.pair video')].map(v => v.muted)") == [False, True]
    v.page.get_by_text("Settings used").click()
    assert "dpm++" in v.page.locator(".result").inner_text()
    with v.page.expect_download() as download:
        v.page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "two-lipsync.mp4"
    download.value.save_as(tmp_path / "got.mp4")
    assert (tmp_path / "got.mp4").read_bytes() == desk.result_path(job).read_bytes()

    v.open()  # the page is loaded anew: the result is there
    v.page.locator(".result").wait_for()

    # Somebody else, who even knows the addresses.
    upload = v.page.evaluate("performance.getEntriesByType('resource').map(e => e.name).find(n => n.includes('/gradio_api/file='))")
    stolen = next(p for p in (desk.root / "uploads").rglob("voice.wav"))
    other = visit()
    assert other.page.locator(".history").count() == 0
    for path in (
        f"job/{job.id}/result",
        f"job/{job.id}/before",
        f"job/{job.id}/preview",
        f"gradio_api/file={stolen}",
        f"gradio_api/file={desk.result_path(job)}",
    ):
        assert other.get(path).status == 404, path
    assert v.get(f"job/{job.id}/result").status == 200
    assert v.get(f"gradio_api/file={stolen}").status == 200
    assert v.get(f"gradio_api/file={desk.result_path(job)}").status == 404, "Gradio serves uploads only"
    assert upload is None or other.context.request.get(upload).status == 404

    v.page.get_by_role("button", name="Delete two.mp4").click()
    v.page.locator(".history").wait_for(state="detached")
    assert desk.jobs(v.owner()) == []
    assert v.get(f"job/{job.id}/result").status == 404


def test_cancel_stops_the_work(visit, heads, page):
    desk = page[1]
    v = visit()
    v.video(heads / "one.mp4")
    v.page.get_by_text("This face will speak").wait_for()
    v.sound(heads / "voice.wav")
    v.page.get_by_text("Settings", exact=True).click()
    v.page.get_by_role("spinbutton", name="number input for Steps").fill("100")
    v.page.keyboard.press("Tab")
    v.page.wait_for_function("[...document.querySelectorAll('#speed input')].at(-1).checked")  # a field was changed: 'My own'
    v.run()
    v.page.locator(".status").get_by_text("step").wait_for()
    job = desk.jobs(v.owner())[0]
    assert (job.state, job.steps) == ("running", 100)
    other = visit()
    other.page.get_by_role("button", name="Run the example").click()
    other.page.locator(".status").get_by_text("Next in line").wait_for()
    v.page.get_by_role("button", name="Cancel", exact=True).click()
    v.page.get_by_text("Nothing was kept of it").wait_for()
    job = desk.get(job.id)
    assert (job.state, job.has_result) == ("cancelled", False)
    assert job.step < 100
    assert not v.page.get_by_role("button", name="Cancel", exact=True).is_visible()
    other.page.locator(".status").get_by_text("Next in line").wait_for(state="detached")  # its turn
    other.page.get_by_role("button", name="Cancel example.mp4").click()
    other.page.get_by_text("Nothing was kept of it").wait_for()
    assert [job.state for job in desk.jobs(other.owner())] == ["cancelled"]
    assert v.wrong == other.wrong == []


def test_what_is_wrong_is_said_in_a_sentence(visit, heads, tmp_path, page):
    v = visit()
    v.run()
    v.says("There is no video yet; add one first.")
    fake = tmp_path / "holiday.mp4"
    fake.write_text("this is no video")
    v.video(fake)
    v.says("holiday.mp4")
    assert str(page[1].root) not in v.page.locator("body").inner_text(), "no path of this machine is shown"
    v.page.get_by_role("tab", name="Picture").click()
    v.page.set_input_files("#still input[type=file]", heads / "still.png")
    v.page.get_by_text("This face will speak").wait_for()
    v.run()
    v.says("There is no sound yet; add one first.")
    v.page.get_by_label("Model").click()
    v.page.get_by_role("option", name="1.6").click()
    v.page.get_by_role("button", name="Download model 1.6").wait_for()
    v.sound(heads / "voice.wav")
    v.run()
    v.says("Model 1.6 is not here yet: press the download button below it.")
    big = tmp_path / "big.wav"
    big.write_bytes(b"RIFF" + bytes(3_500_000))
    v.page.locator("#sound button[aria-label=Clear]").click()
    v.page.set_input_files("#sound input[type=file]", big)
    v.page.get_by_text("too large").or_(v.page.get_by_text("413")).or_(v.page.get_by_text("maximum")).first.wait_for()
    assert "Traceback" not in v.page.locator("body").inner_text()
    assert page[1].jobs(v.owner()) == []
