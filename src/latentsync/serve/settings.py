"""What the operator of one service chooses, beside what the job core is told (`jobs.limits`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from latentsync.serve.addresses import Doorkeeper
from latentsync.serve.keys import Keys


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the service treats those who ask."""

    keys: Keys | None = None  # None: whoever reaches the port may use it
    hosts: tuple[str, ...] | None = None  # names in the Host header that are taken, against web pages that rename their own host; None: any
    alone: bool = True  # without keys: only one person can reach it, as it listens on this machine only
    rate: float = 20.0  # requests a second of one key or address; 0: not counted
    burst: int = 100  # of them at once
    allow_urls: bool = False  # inputs may be named by their address
    keeper: Doorkeeper = field(default_factory=Doorkeeper)  # which addresses may be asked
    webhook_secret: str | None = None  # signs webhooks; None: none are sent
    patience: float = 30.0  # seconds without a byte of a body, before its sender is given up
    slowest: int = 4096  # bytes a second, on average over a body after `patience`
    fetch_seconds: float = 600.0  # for one address
    uploads: int = 32  # bodies of jobs that are taken at the same time
    streams: int = 20  # event streams of one key or address at the same time
    files: int = 18  # of one job
