"""What works on this machine and what does not, each with the command that mends it. Only looks: changes nothing and asks no network."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentsync import hub, weights
from latentsync.errors import LatentSyncError

State = Literal["ok", "warn", "fail"]

# Encoder -> (name of the --codec option that uses it, whether the default needs it).
ENCODERS = {
    "libx264": ("h264", True),
    "aac": ("the soundtrack", True),
    "libx265": ("hevc", False),
    "prores_ks": ("prores", False),
    "ffv1": ("ffv1", False),
}
DECODERS = ("h264", "hevc", "vp9", "av1", "prores", "mpeg4", "mjpeg", "png", "webp", "aac", "mp3", "opus", "flac", "pcm_s16le")
VARIABLES = (
    "LATENTSYNC_HOME",
    "LATENTSYNC_WEIGHTS_PATH",
    "LATENTSYNC_MIRROR",
    "LATENTSYNC_OFFLINE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
)
_SECRET = re.compile(r"//[^/@]*@")  # name and password in an address
PYTHON = ((3, 10), (3, 14))  # from, up to but not including: as in pyproject.toml


@dataclass(frozen=True)
class Check:
    """One thing looked at. `fix` is a command or a step that mends it, empty where nothing is wrong."""

    name: str
    state: State
    text: str
    fix: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.__dict__)

    def line(self) -> str:
        """For people."""
        return f"{self.state:<5} {self.name:<16} {self.text}" + (f"\n{'':<23}-> {self.fix}" if self.fix else "")


def examine(home: str | Path | None = None) -> list[Check]:
    """Look at everything. home: where weights are kept (default as in `weights.resolve`)."""
    folder = weights.home_folder(home)
    groups: tuple[Callable[[], list[Check]], ...] = (
        _python,
        _packages,
        _torch,
        _device,
        _codecs,
        _opencv,
        _optional,
        lambda: _models(folder),
        lambda: _disk(folder),
        _environment,
    )
    return [check for group in groups for check in group()]


def _python() -> list[Check]:
    version = platform.python_version()
    low, high = PYTHON
    text = f"{version} on {platform.system()} {platform.machine()}, {sys.prefix}"
    if low <= sys.version_info[:2] < high:
        return [Check("python", "ok", text)]
    return [Check("python", "fail", text, f"use Python {low[0]}.{low[1]} to {high[0]}.{high[1] - 1}")]


def _requirements() -> list[tuple[str, str]]:
    """(distribution, lower bound) of what this package requires, from its own metadata; empty where it is not installed."""
    try:
        lines = importlib.metadata.requires("latentsync") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    out = []
    for line in lines:
        if "extra ==" in line:
            continue
        name, _, bound = line.partition(">=")
        out.append((name.split(";")[0].strip(), bound.split(",")[0].split(";")[0].strip()))
    return out


def _packages() -> list[Check]:
    required = _requirements()
    if not required:
        return [Check("packages", "warn", "latentsync runs from a folder, not installed: its requirements are not known", "pip install latentsync")]
    found, bad = [], []
    for name, bound in required:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            bad.append(Check(name, "fail", "not installed", f"pip install '{name}>={bound}'"))
            continue
        if bound and _numbers(version) < _numbers(bound):
            bad.append(Check(name, "fail", f"{version} is older than {bound}", f"pip install --upgrade '{name}>={bound}'"))
        found.append(f"{name} {version}")
    return [Check("packages", "ok", ", ".join(found)), *bad]


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 4, 1) of `2.4.1+cu121`."""
    out: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not digits:
            break
        out.append(int(digits))
    return tuple(out)


def _import(name: str) -> tuple[Any, Check | None]:
    """A module, or the check that says why it cannot be had."""
    try:
        return importlib.import_module(name), None
    except (ImportError, OSError, RuntimeError) as e:  # a shared library that is missing, broken, or of another build
        return None, Check(name, "fail", f"cannot be imported: {e}", f"pip install --force-reinstall {name}")


def _torch() -> list[Check]:
    torch, failed = _import("torch")
    if failed:
        return [failed]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if getattr(torch.version, "hip", None) else "CPU only"
    checks = [Check("torch", "ok", f"{torch.__version__} ({build}), {torch.get_num_threads()} threads")]
    if build == "CPU only" and shutil.which("nvidia-smi"):
        checks.append(
            Check(
                "torch build",
                "warn",
                "this machine has an NVIDIA driver, but this torch cannot use it",
                "install the CUDA build: https://pytorch.org/get-started",
            )
        )
    return checks


def _device() -> list[Check]:
    torch, failed = _import("torch")
    if failed:
        return []
    from latentsync.device import choose

    try:
        compute = choose("auto", "auto")
    except LatentSyncError as e:
        return [Check("device", "fail", str(e))]
    checks = [Check("device", "ok", str(getattr(compute, "reason", compute)))]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            checks.append(Check(f"GPU {i}", "ok", f"{torch.cuda.get_device_name(i)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"))
    return checks


def _codecs() -> list[Check]:
    av, failed = _import("av")
    if failed:
        return [failed]

    def has(name: str, mode: str) -> bool:
        try:
            av.codec.Codec(name, mode)
        except ValueError:  # PyAV's UnknownCodecError is one
            return False
        return True

    checks = []
    lacking = [name for name in ENCODERS if not has(name, "w")]
    text = f"PyAV {av.__version__}; encoders " + ", ".join(n for n in ENCODERS if n not in lacking)
    fix = "pip install --force-reinstall --only-binary av av"
    if lacking:
        needed = [n for n in lacking if ENCODERS[n][1]]
        what = ", ".join(f"{n} ({ENCODERS[n][0]})" for n in lacking)
        checks.append(Check("encoders", "fail" if needed else "warn", f"{text}; missing {what}", fix))
    else:
        checks.append(Check("encoders", "ok", text))
    missing = [name for name in DECODERS if not has(name, "r")]
    checks.append(Check("decoders", "warn", "missing " + ", ".join(missing), fix) if missing else Check("decoders", "ok", ", ".join(DECODERS)))
    return checks


def _opencv() -> list[Check]:
    cv2, failed = _import("cv2")
    if failed:
        return [failed]
    builds = []
    for name in ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"):
        try:
            builds.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(builds) > 1:
        others = " ".join(b.split()[0] for b in builds)
        fix = f"pip uninstall -y {others} && pip install opencv-python-headless"
        return [Check("opencv", "warn", f"several builds share one folder and overwrite each other: {', '.join(builds)}", fix)]
    return [Check("opencv", "ok", builds[0] if builds else f"{cv2.__version__} (not from pip)")]


def _models(folder: Path) -> list[Check]:
    checks = []
    rows = [row for row in weights.available(home=folder) if row.downloadable]
    usable = any(row.state == "complete" and row.resolution for row in rows)
    for row in rows:
        command = f"latentsync models download {row.name}"
        if row.state == "complete":
            checks.append(Check(f"model {row.name}" if row.resolution else row.name, "ok", f"{row.summary}; {row.where}"))
        elif row.resolution:
            missing = f"{weights.gigabytes(row.missing)} to fetch of {weights.gigabytes(row.size)}"
            checks.append(Check(f"model {row.name}", "warn", f"{row.summary}; {row.state}, {missing}", "" if usable else command))
        elif row.name == "face":  # every model needs these, untrained ones of one's own too
            checks.append(Check(row.name, "warn", f"{row.summary}; missing", command))
    lacking = weights.shipped.lacking()
    if lacking:
        fix = "pip install --force-reinstall --no-deps latentsync"
        checks.append(Check("model demo", "warn", f"this installation lacks {', '.join(weights.shipped.FILES[r] for r in lacking)}", fix))
    else:
        checks.append(Check("model demo", "ok", f"shipped with the package; {weights.shipped.folder()}"))
    where = ", ".join(str(p) for p in (*weights.search_folders(folder), weights.hub_cache()))
    checks.append(Check("looked in", "ok", where))
    return checks


def _disk(folder: Path) -> list[Check]:
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    if not os.access(there, os.W_OK):
        return [Check("disk", "warn", f"{folder} cannot be written: nothing can be downloaded to it", "export LATENTSYNC_HOME=/a/folder/of/yours")]
    # one model and its converted copy
    needed = 2 * max((row.size or 0) for row in weights.available(home=folder))
    if free < needed:
        return [Check("disk", "warn", f"{text}; a model and its converted copy take {needed / 1e9:.0f} GB", "export LATENTSYNC_HOME=/a/larger/disk")]
    return [Check("disk", "ok", text)]


def _environment() -> list[Check]:
    set_here = [f"{name}={_SECRET.sub('//(hidden)@', os.environ[name])}" for name in VARIABLES if os.environ.get(name)]
    if os.environ.get("HF_TOKEN"):
        set_here.append("HF_TOKEN=(set, not shown)")
    checks = [Check("environment", "ok", ", ".join(set_here) or "no variable in force")]
    forbidden = hub.offline()
    if forbidden:
        checks.append(Check("network", "warn", f"{forbidden} forbids downloads", f"unset {forbidden.split('=')[0]}"))
    checks += [
        Check("search path", "warn", f"LATENTSYNC_WEIGHTS_PATH names {extra}, which is no folder", "correct LATENTSYNC_WEIGHTS_PATH")
        for extra in weights.extra_folders()
        if not extra.is_dir()
    ]
    return checks


def _optional() -> list[Check]:
    checks = [Check("ffmpeg", "ok", "the program is not needed: PyAV brings its libraries")]
    if importlib.util.find_spec("torchvision") is not None:
        # not used here, but transformers and diffusers import it where it is installed, and a build for another torch breaks them
        module, failed = _import("torchvision")
        if failed:
            checks.append(
                Check(
                    "torchvision", "fail", f"not needed, but this one does not fit the installed torch: {failed.text}", "pip uninstall -y torchvision"
                )
            )
        else:
            checks.append(Check("torchvision", "ok", f"{module.__version__}, not needed"))
    if importlib.util.find_spec("insightface") is not None:
        checks.append(Check("insightface", "ok", "installed; its models are for non-commercial use only"))
    return checks
