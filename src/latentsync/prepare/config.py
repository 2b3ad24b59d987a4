"""What preparation does, as frozen and strict data. The defaults are the published values (arXiv 2412.09262, section 4 and its code)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from latentsync.config import nearest
from latentsync.errors import UsageError

SOURCE_STEPS = ("check", "resample", "scenes", "segments")  # on a whole file
CLIP_STEPS = ("faces", "align", "sync", "quality")  # on each span of it
STEPS = SOURCE_STEPS + CLIP_STEPS
# What must have been done before a step, where it is done at all.
AFTER = {
    "resample": ("check",),
    "scenes": ("check",),
    "segments": ("scenes",),
    "align": ("faces",),
    "sync": ("align",),
    "quality": ("align",),
}
SYNC_MODELS = ("syncnet", "demo")
QUALITY_MODELS = ("hyperiqa", "sharpness")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Steps, thresholds and models. A threshold decides anew over numbers that are kept; what changes the numbers themselves measures anew."""

    order: tuple[str, ...] = STEPS
    skip: tuple[str, ...] = ()
    fps: int = 25  # frames per second of the clips
    rate: int = 16000  # Hz of their sound
    scene_threshold: float = 2.0  # of PySceneDetect's adaptive detector; higher cuts less
    least: float = 5.0  # seconds of a clip
    most: float = 10.0
    keep_short: bool = False  # also what is shorter than `least`
    min_face: int = 0  # pixels: the face's box must be as wide and as high (release 1.0 asked for 256)
    one_person: bool = False  # drop clips that show more than one face
    max_yaw: float | None = None  # degrees: turned further away is dropped
    min_share: float = 0.9  # of the clip's frames in which its main face must be found
    face_backend: str = "mediapipe"
    size: Literal[256, 512] = 256  # pixels of the aligned crop
    crop: bool = True  # off: the frame stays whole, and the matrices of the crops are stored beside it
    sync_model: Literal["syncnet", "demo"] = "syncnet"
    min_sync: float | None = None  # confidence; none given: the model's own threshold, 3 for syncnet
    max_offset: int = 6  # frames by which the sound may be shifted
    quality_model: Literal["hyperiqa", "sharpness"] = "hyperiqa"
    min_quality: float | None = None  # none given: the model's own threshold, 40 for hyperiqa

    def __post_init__(self) -> None:
        _check_order(self.order)
        for name in self.skip:
            if name not in STEPS:
                raise UsageError(f"no step '{name}' to skip; the steps are {', '.join(STEPS)}{nearest(name, STEPS)}")
        if "check" in self.skip:
            raise UsageError("the step 'check' cannot be skipped: the others build on what it finds")
        if "faces" in self.skip and "align" not in self.skip:
            raise UsageError("align needs what faces finds; skip both (--skip faces,align), or neither")
        if not 0 < self.least <= self.most:
            raise UsageError(f"clips of {self.least:g} to {self.most:g} s cannot be; --least must be above 0 and not above --most")
        for name, low in (("fps", 1), ("rate", 1000), ("min_face", 0), ("max_offset", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be {low} or more")
        if not 0 <= self.min_share <= 1:
            raise UsageError(f"--min-share is {self.min_share:g}; it is a share of the frames, from 0 to 1")
        for name, value, known in (
            ("size", self.size, (256, 512)),
            ("sync-model", self.sync_model, SYNC_MODELS),
            ("quality-model", self.quality_model, QUALITY_MODELS),
        ):
            if value not in known:
                raise UsageError(f"--{name} is '{value}'; choose {' or '.join(map(str, known))}")

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that are done, in order."""
        return tuple(s for s in self.order if s not in self.skip)

    def does(self, step: str) -> bool:
        """Whether a step is done."""
        return step in self.order and step not in self.skip


def ordered(names: tuple[str, ...]) -> tuple[str, ...]:
    """A whole order from the names of some steps: those in their new order take the places that they had in the published one."""
    for name in names:
        if name not in STEPS:
            raise UsageError(f"no step '{name}' to order; the steps are {', '.join(STEPS)}{nearest(name, STEPS)}")
    if len(set(names)) != len(names):
        raise UsageError(f"--order names a step twice: {', '.join(names)}")
    given = iter(names)
    return tuple(next(given) if step in names else step for step in STEPS)


def _check_order(order: tuple[str, ...]) -> None:
    if sorted(order) != sorted(STEPS):
        raise UsageError(f"the order must name every step once: {', '.join(STEPS)}; found {', '.join(order)}")
    for step, before in AFTER.items():
        for other in before:
            if order.index(other) > order.index(step):
                raise UsageError(f"the step {step} must come after {other}")
    if set(order[: len(SOURCE_STEPS)]) != set(SOURCE_STEPS):
        raise UsageError(f"{', '.join(SOURCE_STEPS)} work on whole files and must come before {', '.join(CLIP_STEPS)}")


@dataclass(frozen=True, kw_only=True)
class Running:
    """How the work is done; nothing of it changes the result."""

    jobs: int = 0  # processes; 0: one for each core
    devices: tuple[str, ...] = ("auto",)  # the processes take them in turn
    time_limit: float = 600.0  # seconds for one step on one file; more is allowed for long files
    home: str = ""  # where weights lie
    keep_work: bool = False  # keep resampled films after their last clip
    retry: bool = False  # do again what failed in an earlier run
    cluster: str = ""  # auto, or the address of a Ray cluster
    steps: str = "latentsync.prepare.steps"  # the package of the steps

    def __post_init__(self) -> None:
        if self.jobs < 0:
            raise UsageError(f"--jobs is {self.jobs}; it must be 1 or more, or 0 for one for each core")
        if self.time_limit <= 0:
            raise UsageError(f"--time-limit is {self.time_limit:g}; it must be above 0 seconds")
        if not self.devices:
            raise UsageError("name at least one device, such as --device cpu")


def thresholds(config: PrepareConfig) -> dict[str, object]:
    """Every value of the configuration by name, as JSON holds it."""
    return {f.name: (list(v) if isinstance(v := getattr(config, f.name), tuple) else v) for f in dataclasses.fields(config)}
