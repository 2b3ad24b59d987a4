"""What evaluating takes, found once for many videos: judges, face finders, networks; and why, where one is not here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from latentsync.device import choose
from latentsync.errors import LatentSyncError, UsageError, WeightsError
from latentsync.evaluate import judge as judges
from latentsync.loading import face_finder
from latentsync.metrics import catalogue

if TYPE_CHECKING:
    from latentsync.evaluate.judge import Judge
    from latentsync.face.protocols import FaceBackend

T = TypeVar("T")

FINDERS = ("auto", "mediapipe", "insightface", "demo")
VADS = ("auto", "silero", "energy")
GROUPS: dict[str, tuple[str, ...]] = {
    "sync": ("sync_confidence", "sync_offset", "sync_offset_fine", "sync_distance", "lse_c", "lse_d"),
    "lips": ("lmd", "lmd_pixels", "lip_r", "lip_lag"),
    "picture": ("ssim_mouth", "ssim_face", "ssim_frame", "psnr_mouth", "psnr_face", "psnr_frame"),
    "lpips": ("lpips_mouth", "lpips_face"),
    "outside": ("outside_max", "outside_share"),
    "quality": ("hyperiqa", "sharpness"),
    "identity": ("identity",),
    "flicker": ("flicker", "flicker_excess"),
    "seam": ("seam", "seam_step"),
    "jitter": ("jitter", "paste_offset"),
    "silence": ("silence_motion", "silence_speed"),
    "faces": ("faces_missing",),
    "speed": ("seconds_per_second", "peak_memory_gb"),
    "fid": ("fid",),
    "fvd": ("fvd",),
}
ALL = tuple(GROUPS)


def chosen(words: Sequence[str]) -> tuple[str, ...]:
    """Groups of metrics from names of groups, keys of metrics, or "all"; in the order of GROUPS. Raises UsageError for an unknown name."""
    wanted = set()
    for word in words:
        group = word if word in GROUPS else next((g for g, keys in GROUPS.items() if word in keys), "")
        if word == "all":
            wanted |= set(GROUPS)
        elif group:
            wanted.add(group)
        else:
            raise UsageError(f"no metric '{word}'; known ones are all, {', '.join(GROUPS)}, and each one's own key")
    return tuple(g for g in GROUPS if g in wanted)


class Tools:
    """Networks and finders by name, loaded when they are first asked for. What is not here stays absent, with its reason."""

    def __init__(
        self,
        metrics: Sequence[str] = ("all",),
        *,
        judge: str = "auto",
        faces: str = "auto",
        vad: str = "auto",
        device: str = "auto",
        home: str | Path | None = None,
    ) -> None:
        """Raises UsageError for unknown names, WeightsError for a judge or finder that is named and not here, DeviceError."""
        self.groups = chosen(metrics)
        self.home = home
        self.device = str(choose(device, "fp32").device)
        self.notes: list[str] = []
        self._absent: dict[str, str] = {}
        self._known: dict[str, Any] = {}
        if vad not in VADS:
            raise UsageError(f"no voice detector '{vad}'; known ones are {', '.join(VADS)}")
        if faces not in FINDERS:
            raise UsageError(f"no face finder '{faces}'; known ones are {', '.join(FINDERS)}")
        self.vad = vad
        self.faces = self._finder(faces)
        self.judge: Judge | None = None
        if "sync" in self.groups:
            try:
                self.judge, note = judges.load(judge, home=home, device=self.device)
                self.notes += [note] if note else []
            except WeightsError as e:
                if judge != "auto":
                    raise
                self._absent["judge"] = str(e)

    def wants(self, group: str) -> bool:
        """Whether a group of metrics is asked for."""
        return group in self.groups

    def finder(self) -> FaceBackend:
        """A face finder for one video: they keep buffers."""
        return face_finder(self.faces, self.home)

    def get(self, name: str, load: Callable[[], T]) -> T | None:
        """What `load` gives, loaded once; None where it is not here, and `absent` then says why."""
        if name not in self._known and name not in self._absent:
            try:
                self._known[name] = load()
            except LatentSyncError as e:
                self._absent[name] = str(e)
        return self._known.get(name)

    def absent(self, name: str) -> str:
        """Why something is not here."""
        return self._absent.get(name, "")

    def plain(self) -> dict[str, Any]:
        """What judges, for the settings of results."""
        return {
            "metrics": list(self.groups),
            "judge": self.judge.name if self.judge else "",
            "faces": self.faces,
            "vad": self.vad,
            "device": self.device,
        }

    def _finder(self, name: str) -> str:
        if name != "auto":
            face_finder(name, self.home)
            return name
        try:
            face_finder("mediapipe", self.home)
        except LatentSyncError:
            face_finder("demo", self.home)
            self.notes.append("faces found by the package's own finder, trained on rendered heads; for MediaPipe's: latentsync models download face")
            return "demo"
        return "mediapipe"


def known_keys(groups: Sequence[str]) -> list[str]:
    """The metrics of groups that the catalogue knows, in its order."""
    wanted = {key for group in groups for key in GROUPS[group]}
    return [key for key in catalogue.METRICS if key in wanted]
