"""The report in a real browser: nothing is asked of any network, nothing complains, and it fits a phone and a desk, in light and in dark."""

import os
import shutil
import time

import cv2
import numpy as np
import pytest

from latentsync.evaluate import cases
from latentsync.evaluate.report import report
from tests.evaluate.results import HOSTILE, results, row
from tests.train.clipmaker import make_clip

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("LATENTSYNC_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install Debian's chromium, or set LATENTSYNC_CHROMIUM")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    clip = make_clip(folder / "a clip.mp4", frames=30)
    patch = pytest.MonkeyPatch()
    patch.setattr(cases, "finder", lambda: None)
    folders = [
        results(
            folder / name,
            [row(HOSTILE, 2.0 + i, clip), *(row(f"v{k}", 3.0 + k + i, clip, flicker=k) for k in range(5))],
            f"system {name} of some length",
        )
        for i, name in enumerate(("a", "b", "c"))
    ]
    made = report(folders, folder / "report.html", most=2)
    patch.undo()
    return made.as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, address):
    """opened(width, scheme) -> (page, what it complained of, what it asked for)."""
    contexts = []

    def go(width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        wrong, asked = [], []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        return page, wrong, [url for url in asked if not url.startswith("data:") and url != address]

    yield go
    for context in contexts:
        context.close()


def until(page, expression):
    """Waits until a script says true. (`wait_for_function` needs eval, which the page forbids.)"""
    for _ in range(200):
        if page.evaluate(expression):
            return
        time.sleep(0.1)
    pytest.fail(f"never true: {expression}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_asks_for_nothing(opened, width, scheme):
    page, wrong, asked = opened(width, scheme)
    until(page, "[...document.querySelectorAll('video')].every(v => v.readyState >= 1)")
    assert (wrong, asked) == ([], [])
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
    outside = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.wide, svg, .clip span'))"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    brightness = [np.mean([int(v) for v in colour[4:-1].split(",")[:3]]) for colour in (ink, paper)]
    assert (brightness[0] < 60 and brightness[1] > 200) if scheme == "light" else (brightness[0] > 200 and brightness[1] < 60)
    assert page.inner_text("article h3").startswith('a "b" <script>alert(1)</script>')


def test_clips_play(opened):
    page, wrong, _ = opened()
    page.evaluate("async () => { const v = document.querySelector('video'); v.muted = true; await v.play(); }")
    until(page, "document.querySelector('video').currentTime > 0.2")
    assert page.evaluate("[document.querySelector('video').videoWidth, document.querySelector('video').videoHeight]") == [3 * cases.TALL, cases.TALL]
    assert wrong == []


def test_the_table_is_sorted_by_the_keyboard(opened):
    page, wrong, _ = opened(390)

    def column(k):
        return page.eval_on_selector_all(".sortable tbody tr", f"rows => rows.map(r => r.cells[{k}].textContent)")

    name = "Sync confidence"
    page.get_by_role("button", name=name).focus()
    k = page.eval_on_selector_all(".sortable thead th", f"heads => heads.findIndex(h => h.textContent === '{name}')")
    page.keyboard.press("Enter")
    assert column(k) == sorted(column(k), key=float)
    page.keyboard.press("Enter")
    assert column(k) == sorted(column(k), key=float, reverse=True)
    assert page.locator("th[aria-sort=descending]").inner_text().startswith(name)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("seconds")
    page.get_by_role("region", name="Metrics").focus()
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('.wide').scrollLeft > 0")
    assert wrong == []


def test_pictures_of_the_page_are_seen(opened, tmp_path):
    """A look at what is drawn: the poster of the clip, dots and curves, not blank paper."""
    page, _, _ = opened()
    for what in (".clip video", "svg.spread", "svg.time"):
        shot = tmp_path / "shot.png"
        page.locator(what).first.screenshot(path=shot)
        assert cv2.imread(str(shot)).std() > 5, what
