"""The models that a visitor may choose: what is here, what it would take to fetch the rest, and fetching it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from latentsync import weights
from latentsync.config import DefaultsConfig
from latentsync.errors import LatentSyncError
from latentsync.options import MAX_STEPS
from latentsync.weights import gigabytes

SPEEDS = {"Fast look": "fast", "Balanced": "balanced", "Best": "best", "My own": "own"}
BEST_CRF = 14  # of h264: half as much again as the usual file, and no visible loss


@dataclass(frozen=True)
class Choice:
    """One model as a visitor sees it."""

    name: str
    label: str
    here: bool
    size: int = 0  # bytes to fetch
    downloadable: bool = False


@dataclass(frozen=True)
class Download:
    """How far a download is."""

    name: str
    said: str
    share: float | None = None  # 0..1
    over: bool = False
    wrong: bool = False


class Models:
    """All of them, by the names that jobs use. One download goes on at a time, for everybody."""

    def __init__(self, sources: Mapping[str, str], *, home: Path | None = None, downloads: bool = True) -> None:
        """sources: name -> name or folder. downloads: whether visitors may fetch what is missing."""
        self.sources = dict(sources)
        self.home = home
        self.downloads = downloads
        self._lock = threading.Lock()
        self._download: Download | None = None
        self._done: dict[str, int] = {}

    def choices(self) -> list[Choice]:
        """Every model, those that are here first."""
        rows = {row.name: row for row in weights.available(home=self.home)}
        found = []
        for name, source in self.sources.items():
            row = rows.get(source)
            here = self._is_here(source)
            if row is None:
                found.append(Choice(name, name if here else f"{name} (not complete)", here))
                continue
            pixels = f"{row.resolution} px" if row.resolution else ""
            word = {"1.6": "sharpest", "1.5": "faster", "demo": "small, for trying out"}.get(name, "")
            told = ", ".join(part for part in (pixels, word) if part)
            label = f"{name} · {told}" if told else name
            label = label if here else f"{name} · {pixels} · not here yet"
            found.append(Choice(name, label, here, row.missing, not here and row.downloadable and self.downloads))
        return sorted(found, key=lambda choice: not choice.here)

    def choice(self, name: str) -> Choice | None:
        """One of them; None for a name that is none."""
        return next((choice for choice in self.choices() if choice.name == name), None)

    def defaults(self, name: str) -> DefaultsConfig:
        """What a job of that model takes where its user does not choose."""
        try:
            return weights.resolve(self.sources.get(name, name), home=self.home, need=()).config.defaults
        except LatentSyncError:
            return DefaultsConfig()

    def speed(self, name: str, speed: str) -> dict[str, float | int | str]:
        """The fields of a preset: steps, guidance, scheduler, cache, crf ('' for the usual)."""
        own = self.defaults(name)
        fields: dict[str, float | int | str] = {
            "steps": own.steps,
            "guidance": own.guidance,
            "scheduler": own.scheduler,
            "cache": 1,
            "crf": "",
        }
        if speed == "fast":
            steps = max(4, round(own.steps * 0.4))
            fields |= {"steps": steps, "scheduler": "dpm++", "cache": 2 if steps >= 8 else 1}
        if speed == "best":
            fields |= {"steps": min(50, MAX_STEPS, own.steps * 2), "crf": BEST_CRF}
        return fields

    def download(self, name: str) -> None:
        """Begin to fetch a model, unless a download is going on. Errors are told by `state`."""
        with self._lock:
            if (self._download is not None and not self._download.over) or not self.downloads:
                return
            self._download = Download(name, f"asking for model {name}")
            self._done = {}
        threading.Thread(target=self._fetch, args=(name,), name=f"download of {name}", daemon=True).start()

    def state(self) -> Download | None:
        """The download that goes on, or the last one; None where there was none."""
        return self._download

    def _fetch(self, name: str) -> None:
        choice = self.choice(name)
        total = choice.size if choice else 0

        def hear(p: weights.Progress) -> None:
            if p.state == "present":
                return
            self._done[p.file] = p.done
            done = sum(self._done.values())
            said = f"model {name}: {gigabytes(done)} of {gigabytes(total)}" if p.state == "downloading" else f"model {name}: {p.state} {p.file}"
            self._say(Download(name, said, min(1.0, done / total) if total else None))

        try:
            weights.download(self.sources[name], home=self.home, progress=hear)
        except (LatentSyncError, OSError) as e:
            self._say(Download(name, f"model {name} could not be fetched: {e}", over=True, wrong=True))
        else:
            self._say(Download(name, f"model {name} is here", 1.0, over=True))

    def _say(self, download: Download) -> None:
        self._download = replace(download)

    def _is_here(self, source: str) -> bool:
        try:
            weights.resolve(source, home=self.home, need=weights.roles())
        except LatentSyncError:
            return False
        return True
