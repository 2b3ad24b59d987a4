"""Telling an address that a job is final: signed, tried again with growing pauses, and not forgotten over a restart.

The form is that of Standard Webhooks (standardwebhooks.com): `webhook-id` is the same at every attempt, `webhook-signature` is `v1,` and the base64
of HMAC-SHA256 over `id.timestamp.body`, with the secret as its key. Libraries that check it exist for most languages; `verify` is ours.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import random
import time
from collections.abc import Mapping

import httpx
from sqlalchemy.exc import SQLAlchemyError

from latentsync.errors import LatentSyncError, UsageError
from latentsync.jobs import Desk
from latentsync.jobs.errors import NotFound
from latentsync.jobs.records import Delivery
from latentsync.serve.addresses import Doorkeeper, ask, client
from latentsync.serve.metrics import Meter
from latentsync.serve.problems import AddressRefused
from latentsync.serve.schemas import job_out

PAUSES = (5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0)  # seconds before the second attempt, the third, ...; then it is given up
ANSWER = 20.0  # seconds that a receiver has
LEASE = 120.0  # seconds after which another process may take a delivery over
LOOK = 1.0  # seconds between two looks for what is due
TOLERANCE = 300.0  # seconds by which a receiver's clock may differ
SHORTEST = 16  # characters of a secret

log = logging.getLogger("latentsync.serve")


def key_of(secret: str) -> bytes:
    """The key that a secret stands for: of `whsec_...` what follows in base64, else its own bytes. Raises UsageError for one that can be guessed."""
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            raise UsageError("the webhook secret begins with 'whsec_', and what follows is not base64") from None
    else:
        key = secret.encode("utf-8", "surrogateescape")
    if len(key) < SHORTEST:
        raise UsageError(f"the webhook secret has fewer than {SHORTEST} bytes, and could be guessed; make one with: openssl rand -base64 32")
    return key


def sign(secret: str, name: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature` of a message called `name` (webhook-id), sent at `timestamp` (webhook-timestamp, seconds since 1970)."""
    signed = f"{name}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key_of(secret), signed, hashlib.sha256).digest()).decode()


def verify(secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None) -> bool:
    """Whether a message comes from who knows the secret, whole, and within the last minutes. For receivers."""
    given = {k.lower(): v for k, v in headers.items()}
    name, stamp = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    if not stamp.isdecimal() or len(stamp) > 12 or abs((time.time() if now is None else now) - int(stamp)) > TOLERANCE:
        return False
    wanted = sign(secret, name, int(stamp), body).encode()
    return any(hmac.compare_digest(wanted, s.encode("utf-8", "replace")) for s in given.get("webhook-signature", "").split(" "))


class Messenger:
    """Sends what the store says is due."""

    def __init__(self, desk: Desk, secret: str, keeper: Doorkeeper, meter: Meter) -> None:
        self._desk, self._secret, self._keeper, self._meter = desk, secret, keeper, meter

    async def run(self) -> None:
        """Until cancelled. A store that does not answer is asked again later."""
        while True:
            try:
                busy = await self.round()
            except (SQLAlchemyError, LatentSyncError, OSError) as e:
                log.warning("webhooks wait: %s", e)
                busy = False
            await asyncio.sleep(0 if busy else LOOK)

    async def round(self) -> int:
        """Try what is due now; how many were tried."""
        due = await asyncio.to_thread(self._desk.store.due_deliveries, limit=10, lease=LEASE)
        await asyncio.gather(*(self._deliver(d) for d in due))
        return len(due)

    async def _deliver(self, delivery: Delivery) -> None:
        store = self._desk.store
        try:
            job = await asyncio.to_thread(self._desk.get, delivery.job)
        except NotFound:
            await asyncio.to_thread(store.give_up, delivery.id, "the job has been deleted")
            return
        data = job_out(job).model_dump(mode="json")
        body = json.dumps({"type": delivery.event, "timestamp": job.plain()["finished"], "data": data}).encode()
        error, final = await self._send(delivery, body)
        if error is None:
            await asyncio.to_thread(store.delivered, delivery.id)
        elif final or delivery.attempts > len(PAUSES):
            log.warning("webhook of job %s given up after %d attempts: %s", delivery.job, delivery.attempts, error)
            await asyncio.to_thread(store.give_up, delivery.id, error)
        else:
            pause = PAUSES[max(0, delivery.attempts - 1)] * random.uniform(0.8, 1.2)
            await asyncio.to_thread(store.postpone, delivery.id, pause, error)
        self._meter.webhook("delivered" if error is None else "failed")

    async def _send(self, delivery: Delivery, body: bytes) -> tuple[str | None, bool]:
        """(what went wrong or None, whether trying again is of no use)."""
        name, now = f"msg_{delivery.job}_{delivery.id}", int(time.time())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(self._secret, name, now, body),
        }
        try:
            async with client(ANSWER) as asker:
                place = await self._keeper.check(delivery.url)
                response = await asyncio.wait_for(ask(asker, "POST", place, content=body, headers=headers), ANSWER)
                await response.aclose()
        except AddressRefused as e:
            return str(e), True
        except LatentSyncError as e:
            return str(e), False
        except asyncio.TimeoutError:
            return f"no answer within {ANSWER:.0f} s", False
        except httpx.HTTPError as e:
            return f"{type(e).__name__} {e}".rstrip(), False
        if response.is_success:
            return None, False
        return f"the receiver answers {response.status_code}", response.status_code == 410
