"""Webhooks: signed so that a receiver can tell, tried again, kept over a restart, and sent nowhere inside."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from latentsync.errors import UsageError
from latentsync.jobs import Desk
from latentsync.serve import webhooks
from latentsync.serve.addresses import Doorkeeper
from latentsync.serve.metrics import Meter
from latentsync.serve.webhooks import Messenger, key_of, sign, verify
from tests.jobs.conftest import submit, until
from tests.serve.conftest import Service, ask, end, files

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The example of its specification's libraries."""
    body = b'{"test": 2432232314}'
    name, stamp, signature = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert sign(SECRET, name, stamp, body) == signature
    headers = {"Webhook-Id": name, "webhook-timestamp": str(stamp), "webhook-signature": f"v1,old {signature}"}
    assert verify(SECRET, headers, body, now=stamp + 100)
    assert not verify(SECRET, headers, body + b" ", now=stamp)
    assert not verify(SECRET, headers, body, now=stamp + 1000), "an old message sent again"
    assert not verify("another secret of 16", headers, body, now=stamp)
    assert not verify(SECRET, {**headers, "Webhook-Id": "other"}, body, now=stamp)
    assert not verify(SECRET, {}, body)
    assert not verify(SECRET, {**headers, "webhook-timestamp": "now"}, body)


@pytest.mark.parametrize("secret", ["", "short", "whsec_", "whsec_%%%", "whsec_c2hvcnQ="])
def test_secrets_that_can_be_guessed(secret: str) -> None:
    with pytest.raises(UsageError, match="secret"):
        key_of(secret)


class Receiver(ThreadingHTTPServer):
    """Keeps what it is told, and answers with these codes, the last one for ever."""

    def __init__(self) -> None:
        self.codes = [200]
        self.told: list[tuple[dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Receive)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Receive(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((dict(self.headers.items()), body))
        code = self.server.codes.pop(0) if len(self.server.codes) > 1 else self.server.codes[0]
        self.send_response(code)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def round_(desk: Desk, hosts: tuple[str, ...] = ("127.0.0.1",)) -> int:
    """One look at what is due."""
    return asyncio.run(Messenger(desk, SECRET, Doorkeeper(hosts=hosts), Meter(desk)).round())


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PAUSES", (0.0, 0.0, 0.0))


def test_a_job_that_ends_is_told_of(service: Service, desk: Desk, clip: Path, receiver: Receiver) -> None:
    client = service(webhook_secret=SECRET, keeper=Doorkeeper(hosts={"127.0.0.1"}))
    job = ask(client, clip, webhook_url=receiver.url)
    time.sleep(0.1)
    assert receiver.told == []
    end(desk)
    until(lambda: receiver.told)
    headers, body = receiver.told[0]
    assert verify(SECRET, headers, body)
    told = json.loads(body)
    assert (told["type"], told["data"]["id"], told["data"]["state"]) == ("job.done", job["id"], "done")
    assert told["data"] == client.get(job["links"]["self"]).json()
    until(lambda: desk.store.deliveries(job["id"])[0].state == "delivered")
    assert 'latentsync_webhooks_total{outcome="delivered"} 1.0' in client.get("/metrics").text
    assert receiver.url not in client.get(job["links"]["self"]).text


def test_it_is_tried_again_with_the_same_id_until_it_arrives(desk: Desk, clip: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    receiver.codes = [500, 302, 200]
    job = submit(desk, clip, webhook=receiver.url)
    end(desk, "failed", error="no", error_kind="NoFaceError")
    assert [round_(desk) for _ in range(4)] == [1, 1, 1, 0]
    assert len({headers["webhook-id"] for headers, _ in receiver.told}) == 1
    assert [json.loads(body)["type"] for _, body in receiver.told] == ["job.failed"] * 3
    assert desk.store.deliveries(job.id)[0].state == "delivered"


def test_pauses_grow_and_end(desk: Desk, clip: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.codes = [503]
    job = submit(desk, clip, webhook=receiver.url)
    end(desk)
    round_(desk)
    found = desk.store.deliveries(job.id)[0]
    assert 3 < found.due - time.time() < 7
    assert "503" in found.last_error
    assert list(webhooks.PAUSES) == sorted(webhooks.PAUSES)
    hurry(monkeypatch)
    desk.store.postpone(found.id, 0, "")
    assert sum(round_(desk) for _ in range(9)) == 3
    assert desk.store.deliveries(job.id)[0].state == "given up"


def test_who_is_gone_or_inside_is_given_up_at_once(desk: Desk, clip: Path, receiver: Receiver) -> None:
    receiver.codes = [410]
    gone = submit(desk, clip, webhook=receiver.url)
    end(desk)
    round_(desk)
    assert desk.store.deliveries(gone.id)[0].state == "given up"
    inside = submit(desk, clip, webhook=receiver.url)
    end(desk)
    round_(desk, hosts=())
    found = desk.store.deliveries(inside.id)[0]
    assert (found.state, "public internet" in found.last_error, len(receiver.told)) == ("given up", True, 1)


def test_it_survives_a_restart(tmp_path: Path, clip: Path, receiver: Receiver) -> None:
    made: dict[str, Any] = {"models": ["demo"], "workers": False}
    with Desk(tmp_path / "data", **made) as desk:
        submit(desk, clip, webhook=receiver.url)
        end(desk)
    with Desk(tmp_path / "data", **made) as desk:
        assert round_(desk) == 1
    assert len(receiver.told) == 1


def test_without_a_secret_none_is_taken(service: Service, clip: Path, receiver: Receiver) -> None:
    answer = service(keeper=Doorkeeper(hosts={"127.0.0.1"})).post("/v1/jobs", files=files(clip), data={"webhook_url": receiver.url})
    assert (answer.status_code, "no webhooks" in answer.text) == (422, True)
