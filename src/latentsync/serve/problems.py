"""What is answered when a request cannot be served: a status, the kind of error, and a sentence.

Every error of the package has a status here; the kind is its class's name, so that a client can raise the same class again.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from latentsync import errors
from latentsync.jobs import errors as jobs


class Denied(errors.LatentSyncError):
    """No key, or one that is not known."""


class Forbidden(errors.LatentSyncError):
    """A request that this service takes from nobody, such as one that a web page of another origin sends."""


class TooLarge(errors.InputError):
    """More bytes than are taken."""


class TooSlow(errors.InputError):
    """A body that comes too slowly, or stops coming."""


class TooOften(errors.LatentSyncError):
    """More requests than one visitor may send."""

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message)
        self.after = after  # seconds until the next one is taken


class NotReady(errors.LatentSyncError):
    """What was asked for is not there yet, or never will be: the job has not ended, or ended otherwise."""


class UnsupportedMedia(errors.UsageError):
    """A body of a type that is not understood."""


class AddressRefused(errors.UsageError):
    """An address that this service does not ask."""


class AddressFailed(errors.InputError):
    """An address that could be asked, and gave no file."""


# The first that fits: special ones before those they are made of.
STATUS: tuple[tuple[type[errors.LatentSyncError], int], ...] = (
    (Denied, 401),
    (Forbidden, 403),
    (jobs.NotFound, 404),
    (TooSlow, 408),
    (jobs.Conflict, 409),
    (NotReady, 409),
    (TooLarge, 413),
    (UnsupportedMedia, 415),
    (TooOften, 429),
    (jobs.LimitError, 413),
    (jobs.TooMany, 429),
    (jobs.QueueFull, 503),
    (jobs.DiskFull, 507),
    (errors.UsageError, 422),
    (errors.InputError, 422),
    (errors.NoFaceError, 422),
    (errors.WeightsError, 422),
    (errors.DeviceError, 503),
    (errors.OutputError, 503),
    (errors.LatentSyncError, 500),
)
RETRY_AFTER = 15  # seconds, where nobody can say


def status_of(error: errors.LatentSyncError) -> int:
    """The HTTP status for an error of the package."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


def body_of(kind: str, message: str) -> dict[str, Any]:
    """The body of every error."""
    return {"error": {"kind": kind, "message": message}}


def answer(error: errors.LatentSyncError) -> JSONResponse:
    """The response for an error of the package."""
    status = status_of(error)
    headers = {}
    if isinstance(error, TooOften):
        headers["Retry-After"] = str(max(1, math.ceil(error.after)))
    elif status in (429, 503):
        headers["Retry-After"] = str(RETRY_AFTER)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="latentsync"'
    return JSONResponse(body_of(type(error).__name__, str(error)), status, headers)
