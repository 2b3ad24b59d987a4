"""Who is let in, under which name, and how often."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from latentsync.errors import UsageError
from latentsync.jobs import Desk
from latentsync.serve import keys
from latentsync.serve.api import create_app
from latentsync.serve.gate import Places
from latentsync.serve.problems import TooOften
from latentsync.serve.rate import Buckets, visitor
from latentsync.serve.settings import Settings
from tests.serve.conftest import Service, ask, end

ALICE, BOB = "alices-key-0123456789", "bobs-key-0123456789"
KEYS = keys.read([f"alice:{ALICE}", f"bob:{keys.digest(BOB)}", "", "# nobody", f"alice:{ALICE}2"], "here")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_are_known_by_their_digests_only() -> None:
    assert KEYS.owner(ALICE) == KEYS.owner(ALICE + "2") == "alice"
    assert KEYS.owner(BOB) == "bob"
    for wrong in ("", "alice", ALICE[:-1], ALICE.upper(), keys.digest(BOB), "ä\udcff"):
        assert KEYS.owner(wrong) is None
    assert ALICE not in repr(KEYS) + str(KEYS.known)


@pytest.mark.parametrize(
    "line", ["alice", ":key-0123456789abcdef", "a b:key-0123456789abcdef", "alice:short", "alice:with space 0123456789", "a:sha256:xyz"]
)
def test_lines_that_are_no_keys_are_named_without_the_key(line: str) -> None:
    with pytest.raises(UsageError, match=r"keys\.txt, line 2") as e:
        keys.read(["# keys", line], "keys.txt")
    assert "0123456789" not in str(e.value)


def test_new_keys_are_added_to_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    made = [keys.new(name) for name in ("alice", "bob")]
    for _, line in made:
        keys.add(file, line)
    known = keys.load(file, f"carol:{ALICE}")
    assert known is not None
    assert [known.owner(k) for k, _ in made] + [known.owner(ALICE)] == ["alice", "bob", "carol"]
    assert made[0][0] not in file.read_text()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert keys.load(None, None) is keys.load(None, " ") is None
    with pytest.raises(UsageError, match="cannot be the name"):
        keys.new("a:b")


def test_buckets_fill_steadily() -> None:
    now = 0.0
    buckets = Buckets(2.0, 3, clock=lambda: now)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0
    now = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0, 0.5]
    now = 100.0
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert Buckets(0, 1).take("a") == 0


def test_buckets_do_not_grow_for_ever() -> None:
    buckets = Buckets(1.0, 1, most=100)
    for i in range(1000):
        buckets.take(str(i))
    assert len(buckets) == 100


def test_addresses_are_counted_by_household() -> None:
    assert visitor("2001:db8:1:2:3::1") == visitor("2001:db8:1:2:ffff::9") != visitor("2001:db8:1:3::1")
    assert visitor("::ffff:1.2.3.4") == visitor("1.2.3.4") == "1.2.3.4"
    assert visitor(None) == visitor("nonsense") == "unknown"


def test_without_a_key_nobody_gets_in(service: Service) -> None:
    client = service(keys=KEYS)
    for headers in ({}, bearer("wrong"), {"Authorization": f"Basic {ALICE}"}, {"X-API-Key": "wrong"}):
        for path in ("/v1/jobs", "/v1/models", "/metrics", "/v1/jobs/x/result"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["kind"] == "Denied"
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    refused = client.post("/v1/jobs", files={"video": b"x"})
    assert (refused.status_code, refused.headers["Connection"]) == (401, "close")
    assert client.get("/v1/models", headers=bearer(ALICE)).status_code == 200
    assert client.get("/v1/models", headers={"X-API-Key": BOB}).status_code == 200
    assert [client.get(path).status_code for path in ("/healthz", "/docs", "/openapi.json")] == [200, 200, 200]


def test_other_peoples_jobs_are_not_there(service: Service, desk: Desk, clip: Path) -> None:
    client = service(keys=KEYS)
    job = ask(client, clip, bearer(ALICE))["id"]
    end(desk)
    for method, path in (
        ("GET", ""), ("GET", "/result"), ("HEAD", "/result"), ("GET", "/preview"), ("GET", "/events"), ("DELETE", ""), ("POST", "/cancel")
    ):  # fmt: skip
        mine = client.request(method, f"/v1/jobs/{job[:-1]}0{path}", headers=bearer(BOB))
        his = client.request(method, f"/v1/jobs/{job}{path}", headers=bearer(BOB))
        assert his.status_code == mine.status_code == 404, (method, path)
    assert client.get("/v1/jobs", headers=bearer(BOB)).json()["jobs"] == []
    assert client.get("/v1/jobs", params={"before": job}, headers=bearer(BOB)).status_code == 404
    assert [j["id"] for j in client.get("/v1/jobs", headers=bearer(ALICE)).json()["jobs"]] == [job]
    assert client.get(f"/v1/jobs/{job}/result", headers=bearer(ALICE)).status_code == 200


def test_too_many_requests_are_told_when_to_come_again(service: Service) -> None:
    client = service(keys=KEYS, rate=0.5, burst=3)
    answers = [client.get("/v1/models", headers=bearer(ALICE)) for _ in range(5)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    assert answers[3].json()["error"]["kind"] == "TooOften"
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 2
    assert client.get("/v1/models", headers=bearer(BOB)).status_code == 200, "others are not held up"
    assert [client.get("/v1/models", headers=bearer(f"guess {i}")).status_code for i in range(5)] == [401, 401, 401, 429, 429]
    assert client.get("/healthz").status_code == 200


def test_web_pages_cannot_use_a_service_without_keys(service: Service) -> None:
    client = service(hosts=("localhost", "127.0.0.1"))
    assert client.get("/v1/models").status_code == 200
    assert client.get("/v1/models", headers={"Origin": "http://localhost"}).status_code == 200
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}, {"Host": "evil.example:8000"}, {"Host": ""}):
        answer = client.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (403, "Forbidden"), headers
    assert client.get("/v1/models", headers={"Host": "127.0.0.1:8000"}).status_code == 200


def test_strangers_get_no_list_and_share_no_keys(service: Service, clip: Path) -> None:
    client = service(alone=False)
    job = ask(client, clip, {"Idempotency-Key": "1"})["id"]
    assert client.get(f"/v1/jobs/{job}").status_code == 200
    assert client.get("/v1/jobs").status_code == 403


def test_answers_carry_what_browsers_should_know(service: Service) -> None:
    answer = service().get("/v1/models")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in answer.headers["Cache-Control"]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_below_a_path_the_same_doors_are_open(desk: Desk) -> None:
    """As uvicorn says it: the path with what a proxy has taken off."""
    app = create_app(desk, Settings(keys=KEYS))
    with TestClient(app, base_url="http://localhost", root_path="/lips") as client:
        answers = [client.get(f"/lips{path}").status_code for path in ("/healthz", "/docs", "/v1/jobs", "/v1/models/healthz")]
        assert answers == [200, 200, 401, 401]
        assert client.get("/lips/", follow_redirects=False).headers["Location"] == "/lips/docs"


def test_places_are_given_back() -> None:
    places = Places(2, 1, "streams")
    with places.hold("a"):
        with pytest.raises(TooOften):
            places.hold("a").__enter__()
        with places.hold("b"), pytest.raises(TooOften):
            places.hold("c").__enter__()
    with places.hold("a"):
        pass
