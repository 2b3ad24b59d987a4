"""What a desk takes on: sizes, lengths, queues. Checked when a job is submitted, and again while it runs, as files may lie about themselves."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from latentsync.errors import UsageError
from latentsync.jobs.errors import LimitError

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Settings with sane defaults; 0 switches one off. Raises UsageError for values that make no sense."""

    max_bytes: int = 2 * GIB  # of one upload
    max_seconds: float = 3600.0  # of a result
    max_pixels: int = 4096 * 2304  # of a picture
    max_rate: float = 240.0  # frames a second
    max_result_bytes: int = 8 * GIB
    max_queue: int = 100  # jobs that wait
    max_per_owner: int = 20  # unfinished jobs
    keep_hours: float = 24.0  # after a job is finished
    min_free_bytes: int = 2 * GIB  # of the disk, always
    max_attempts: int = 3  # times that a job is begun, where its worker dies under it
    job_seconds: float = 86400.0  # of work on one job

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise UsageError(f"limit {field.name} {value}: must be a number from 0 (no limit) on")
        if self.max_attempts < 1:
            raise UsageError(f"limit max_attempts {self.max_attempts}: a job is begun at least once")

    def check_size(self, size: int, name: str) -> None:
        """Raises LimitError for an upload of so many bytes."""
        if self.max_bytes and size > self.max_bytes:
            raise LimitError(f"{name} has {size / GIB:.2f} GiB; at most {self.max_bytes / GIB:.2f} GiB are taken")

    def check_picture(self, width: int, height: int, name: str) -> None:
        """Raises LimitError for pictures of so many pixels."""
        if self.max_pixels and width * height > self.max_pixels:
            raise LimitError(f"{name} has pictures of {width}x{height}; at most {self.max_pixels / 1e6:.1f} million pixels are taken")

    def check_rate(self, rate: Fraction | float | None, name: str) -> None:
        """Raises LimitError for so many frames a second."""
        if self.max_rate and rate is not None and rate > self.max_rate:
            raise LimitError(f"{name} has {float(rate):g} frames a second; at most {self.max_rate:g} are taken")

    def check_seconds(self, seconds: Fraction | float | None, what: str) -> None:
        """Raises LimitError for something of so many seconds."""
        if self.max_seconds and seconds is not None and seconds > self.max_seconds:
            raise LimitError(f"{what} is longer than {self.max_seconds:g} s, which is the most that is taken: make it shorter")

    def check_frames(self, frames: int) -> None:
        """Raises LimitError for a result of so many frames, whatever their times say."""
        if self.max_seconds and self.max_rate and frames > self.max_seconds * self.max_rate:
            raise LimitError(f"the result has more than {self.max_seconds * self.max_rate:.0f} frames, which is the most that is taken")

    def check_work(self, seconds: float) -> None:
        """Raises LimitError for so many seconds of work."""
        if self.job_seconds and seconds > self.job_seconds:
            raise LimitError(f"the job has taken {seconds:.0f} s, and {self.job_seconds:g} s are given to one: use a shorter video, or fewer steps")

    def check_written(self, size: int) -> None:
        """Raises LimitError for a result of so many bytes."""
        if self.max_result_bytes and size > self.max_result_bytes:
            raise LimitError(f"the result is larger than {self.max_result_bytes / GIB:.2f} GiB; use --codec h264, or a shorter video")

    def check_uploads(self, files: dict[Path, str]) -> None:
        """Raises LimitError for the first of these files (path -> its name for people) that is too large."""
        for path, name in files.items():
            self.check_size(path.stat().st_size, name)
