"""What can be refused or go wrong with a job, besides the errors of the package that its work may raise."""

from __future__ import annotations

from latentsync.errors import InputError, LatentSyncError, OutputError, UsageError


class NotFound(UsageError):
    """There is no such job, or it is another owner's."""


class Conflict(UsageError):
    """It does not go together with what is there: a key used for another job, or a job in another state."""


class LimitError(InputError):
    """An input, or the result it would give, is larger than this desk allows."""


class QueueFull(LatentSyncError):
    """Too many jobs are waiting."""


class TooMany(QueueFull):
    """Too many jobs of this owner are unfinished."""


class DiskFull(OutputError):
    """There is not enough free space to take a job on, or to go on with it."""


class Stopped(LatentSyncError):
    """The work on a job ends here and now, without a result: the reason is a subclass. Nobody is told but the worker."""


class Cancelled(Stopped):
    """Its owner does not want it any more."""


class Fenced(Stopped):
    """The job was taken away from this worker, which was not heard of for too long; another one has it, or will."""


class Leaving(Stopped):
    """The worker has to leave; the job goes back into the queue."""
