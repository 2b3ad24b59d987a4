"""Jobs: handed in at a desk, done by worker processes that keep one model loaded, and fetched. The web page and the HTTP service are its faces."""

from latentsync.jobs.desk import Desk
from latentsync.jobs.errors import Conflict, DiskFull, LimitError, NotFound, QueueFull, TooMany
from latentsync.jobs.folders import Draft
from latentsync.jobs.limits import Limits
from latentsync.jobs.records import FINAL, STATES, Counts, Delivery, Job, Model, Request, SegmentInput, State, Worker

__all__ = [
    "FINAL",
    "STATES",
    "Conflict",
    "Counts",
    "Delivery",
    "Desk",
    "DiskFull",
    "Draft",
    "Job",
    "LimitError",
    "Limits",
    "Model",
    "NotFound",
    "QueueFull",
    "Request",
    "SegmentInput",
    "State",
    "TooMany",
    "Worker",
]
