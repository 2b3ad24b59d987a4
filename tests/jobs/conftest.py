"""The smallest clip, and a desk whose workers need no networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentsync.jobs import Desk, Job, Limits, Request
from latentsync.jobs.worker import Setting
from tests.conftest import ROOT, loaded

SMALL = Limits(min_free_bytes=1 << 20)
STANDIN = "tests.jobs.standin:performer"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 0.4 s of the drawn sample at 160 px: sample.mp4 and speech.wav."""
    folder = tmp_path_factory.mktemp("clip")
    loaded(ROOT / "tools" / "sample.py").make(folder, seconds=0.4, size=160)
    return folder


class QuickDesk(Desk):
    """A desk whose workers are stand-ins."""

    def setting(self, device: str, number: int = 0) -> Setting:
        return replace(super().setting(device, number), factory=STANDIN)


def submit(desk: Desk, clip: Path, *, owner: str = "", key: str | None = None, webhook: str | None = None, **options: Any) -> Job:
    draft = desk.new_folder()
    video, audio = draft.copy(clip / "sample.mp4", "video"), draft.copy(clip / "speech.wav", "audio")
    request = Request(video=video.name, audio=audio.name, options=options)
    return desk.submit(draft, request, owner=owner, idempotency_key=key, webhook=webhook)


def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for it, and give what it gave."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return found


@pytest.fixture
def shut(tmp_path: Path) -> Iterator[Desk]:
    """A desk without workers."""
    with Desk(tmp_path / "root", models=["demo"], limits=SMALL, workers=False) as desk:
        yield desk
