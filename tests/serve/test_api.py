"""The routes, from a job that is asked for to its end, over a desk whose jobs this test ends by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentsync import __version__
from latentsync.jobs import Desk, Limits
from latentsync.jobs.store import Pulse
from latentsync.serve.addresses import Doorkeeper
from tests.serve.conftest import Service, ask, end, files, folders


def test_a_job_from_its_asking_to_its_end(service: Service, desk: Desk, clip: Path) -> None:
    client = service()
    answer = client.post("/v1/jobs", files=files(clip), data={"steps": "3", "seed": "random", "report": "false", "face": "largest"})
    job = answer.json()
    assert (answer.status_code, job["state"], job["position"]) == (202, "queued", 1)
    assert answer.headers["Location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert (job["request"]["model"], job["request"]["video"], job["request"]["audio"]) == ("demo", "sample.mp4", "speech.wav")
    assert job["request"]["options"]["steps"] == 3
    assert job["request"]["options"]["seed"] > 0, "it was drawn, and is told"
    assert ask(client, clip)["position"] == 2
    here = job["links"]["self"]
    for path in ("/result", "/preview"):
        early = client.get(here + path)
        assert (early.status_code, early.json()["error"]["kind"]) == (409, "NotReady")

    taken = desk.store.claim("a worker", "here", ["demo"])
    assert taken is not None
    (desk.root / "jobs" / job["id"] / "preview.jpg").write_bytes(b"\xff\xd8picture")
    desk.store.pulse(taken[0], Pulse(message="syncing", done=4, total=10, step=1, steps=3, seconds=2.0, seconds_left=3.04, previews=1))
    now = client.get(here).json()
    assert (now["state"], now["message"], now["position"]) == ("running", "syncing", None)
    assert now["progress"] == {"frames_done": 4, "frames_total": 10, "step": 1, "steps": 3, "seconds": 2.0, "seconds_left": 3.0}
    seen = client.get(now["links"]["preview"])
    assert (seen.headers["Content-Type"], seen.content) == ("image/jpeg", b"\xff\xd8picture")

    (desk.root / "jobs" / job["id"] / "result-1.mp4").write_bytes(bytes(range(200)))
    desk.store.finish(taken[0], "done", 3600.0, result={"frames": 10}, out="result-1.mp4")
    done = client.get(here).json()
    assert (done["state"], done["result"], done["error"]) == ("done", {"frames": 10}, None)
    assert done["expires"] > done["finished"] > done["created"]
    whole = client.get(done["links"]["result"])
    assert (whole.status_code, whole.content, whole.headers["Content-Type"]) == (200, bytes(range(200)), "video/mp4")
    assert whole.headers["Content-Disposition"].startswith("attachment")
    part = client.get(done["links"]["result"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, bytes(range(10, 20)), "bytes 10-19/200")
    assert client.get(done["links"]["result"], headers={"Range": "bytes=500-"}).status_code == 416
    head = client.head(done["links"]["result"])
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, "200", b"")

    assert client.delete(here).status_code == 204
    assert client.get(here).status_code == client.delete(here).status_code == 404
    assert job["id"] not in folders(desk)


def test_a_job_that_failed_says_why(service: Service, desk: Desk, clip: Path) -> None:
    client = service()
    here = ask(client, clip)["links"]["self"]
    end(desk, "failed", error="no face in sample.mp4", error_kind="NoFaceError", exit_code=4)
    assert client.get(here).json()["error"] == {"kind": "NoFaceError", "message": "no face in sample.mp4"}
    answer = client.get(f"{here}/result")
    assert (answer.status_code, answer.json()["error"]["message"]) == (409, "the job failed: no face in sample.mp4")


def test_cancelling(service: Service, desk: Desk, clip: Path) -> None:
    client = service()
    waiting, running = ask(client, clip)["links"]["self"], None
    stopped = client.delete(waiting)
    assert (stopped.status_code, stopped.json()["state"]) == (202, "cancelled")
    running = ask(client, clip)["links"]["self"]
    taken = desk.store.claim("a worker", "here", ["demo"])
    assert taken is not None
    asked = client.post(f"{running}/cancel")
    assert (asked.status_code, asked.json()["state"], asked.json()["cancelling"]) == (202, "running", True)
    assert desk.store.pulse(taken[0], Pulse()), "the worker hears of it"
    desk.store.finish(taken[0], "cancelled", 3600.0)
    again = client.post(f"{running}/cancel")
    assert (again.status_code, again.json()["state"]) == (202, "cancelled"), "cancelling never deletes"


def test_lists_go_on(service: Service, clip: Path) -> None:
    client = service()
    made = [ask(client, clip)["id"] for _ in range(3)][::-1]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    rest = client.get("/v1/jobs", params={"limit": 2, "before": first["next"]}).json()
    assert [j["id"] for j in first["jobs"] + rest["jobs"]] == made
    assert rest["next"] is None
    assert client.get("/v1/jobs", params={"state": "done"}).json() == {"jobs": [], "next": None}
    for wrong in ({"limit": 0}, {"limit": 1000}, {"state": "lost"}):
        answer = client.get("/v1/jobs", params=wrong)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "UsageError")


def test_the_same_key_is_the_same_job(service: Service, desk: Desk, clip: Path) -> None:
    client = service()
    key = {"Idempotency-Key": "5f0c"}
    job = ask(client, clip, key, steps="2")
    assert ask(client, clip, key, steps="2")["id"] == job["id"]
    assert folders(desk) == [job["id"]]
    other = client.post("/v1/jobs", files=files(clip), data={"steps": "3"}, headers=key)
    assert (other.status_code, other.json()["error"]["kind"]) == (409, "Conflict")
    assert folders(desk) == [job["id"]]
    for wrong in ("", "two words", "x" * 151):
        assert client.post("/v1/jobs", files=files(clip), headers={"Idempotency-Key": wrong}).status_code == 422


def test_segments_name_their_sounds(service: Service, desk: Desk, clip: Path) -> None:
    client = service()
    segments = [{"start": 0, "end": 0.1, "audio": "audio_2"}, {"start": 0.2, "end": 0.3, "audio": "audio-3", "audio_start": 0.05}]
    sent = files(clip, "audio_2", "audio-3")
    del sent["audio"]
    answer = client.post("/v1/jobs", files=sent, data={"segments": json.dumps(segments)})
    assert answer.status_code == 202, answer.text
    job = desk.get(answer.json()["id"])
    assert [(s.start, s.audio, s.audio_start) for s in job.request.segments] == [(0, "audio-2.wav", 0), (0.2, "audio-3.wav", 0.05)]
    assert [s["audio"] for s in answer.json()["request"]["segments"]] == ["audio_2.wav", "audio-3.wav"]
    for wrong, says in (
        ([{"start": 0, "end": 1, "audio": "audio_9"}], "no file 'audio_9'"),
        ([{"start": 0, "end": 1}], "name its sound"),
        ([{"start": 1, "end": 0.5, "audio": "audio_2"}], "end"),
        ([{"start": 0, "end": 0.3, "audio": "audio_2"}, {"start": 0.2, "end": 0.4, "audio": "audio_2"}], "overlap"),
    ):
        answer = client.post("/v1/jobs", files=sent, data={"segments": json.dumps(wrong)})
        assert (answer.status_code, says in answer.json()["error"]["message"]) == (422, True), answer.text
    assert folders(desk) == [job.id]


@pytest.mark.parametrize(
    ("drop", "fields", "says"),
    [
        ("video", {}, "video: missing"),
        ("audio", {}, "audio: missing"),
        ("", {"model": "9.9"}, "'9.9' is not offered here"),
        ("", {"codec": "vhs"}, "codec: "),
        ("", {"face": "nobody"}, "face 'nobody'"),
        ("", {"video_url": "https://a.example/x.mp4"}, "no addresses"),
        ("", {"webhook_url": "https://a.example/"}, "no webhooks"),
        ("", {"preview": "true"}, "taesd"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_left(
    service: Service, desk: Desk, clip: Path, drop: str, fields: dict[str, str], says: str
) -> None:
    sent = {k: v for k, v in files(clip).items() if k != drop}
    answer = service().post("/v1/jobs", files=sent, data=fields)
    assert answer.status_code == 422, answer.text
    assert says in answer.json()["error"]["message"]
    assert folders(desk) == []


def test_files_that_are_none_are_said(service: Service, desk: Desk, clip: Path, tmp_path: Path) -> None:
    client = service()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip / 'sample.mp4'}\n#EXT-X-ENDLIST\n".encode()
    for content in (b"no film at all", b"\0" * 5000, playlist, b"ffconcat version 1.0\nfile /etc/passwd\n"):
        sent = files(clip) | {"video": ("film.mp4", content)}
        answer = client.post("/v1/jobs", files=sent)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "InputError")
        assert "film.mp4" in answer.json()["error"]["message"] or "points at other files" in answer.json()["error"]["message"]
        assert str(tmp_path) not in answer.text, "paths of the service are nobody's business"
    assert folders(desk) == []


def test_full_queues_are_refused_before_the_upload(tmp_path: Path, clip: Path) -> None:
    from starlette.testclient import TestClient

    from latentsync.serve.api import create_app
    from latentsync.serve.settings import Settings

    limits = Limits(min_free_bytes=1 << 20, max_queue=2, max_per_owner=1)
    with Desk(tmp_path / "data", models=["demo"], limits=limits, workers=False) as desk, TestClient(create_app(desk, Settings())) as client:
        ask(client, clip, {"Idempotency-Key": "first"})
        many = client.post("/v1/jobs", files=files(clip))
        assert (many.status_code, many.json()["error"]["kind"]) == (429, "TooMany")
        assert "Retry-After" in many.headers
        taken = desk.new_folder()
        from latentsync.jobs import Request

        video, audio = taken.copy(clip / "sample.mp4", "video"), taken.copy(clip / "speech.wav", "audio")
        desk.submit(taken, Request(video=video.name, audio=audio.name), owner="another")
        full = client.post("/v1/jobs", content=b"not even looked at")
        assert (full.status_code, full.json()["error"]["kind"]) == (503, "QueueFull")
        assert ask(client, clip, {"Idempotency-Key": "first"})["state"] == "queued", "who asks again for what was taken is answered"


def test_a_full_disk_is_said(service: Service, desk: Desk, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = service()
    monkeypatch.setattr("latentsync.jobs.folders.Folders.free", lambda self: 10)
    answer = client.post("/v1/jobs", files=files(clip))
    assert (answer.status_code, answer.json()["error"]["kind"]) == (507, "DiskFull")
    assert "disk" in client.get("/readyz").json()["message"]
    assert folders(desk) == []


def test_a_disk_that_fills_while_a_file_comes_leaves_nothing(service: Service, desk: Desk, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    client = service()
    monkeypatch.setattr("latentsync.serve.sink.open", lambda *_, **__: Full(), raising=False)
    answer = client.post("/v1/jobs", files=files(clip))
    assert (answer.status_code, answer.json()["error"]["kind"]) == (507, "DiskFull")
    assert folders(desk) == []


def test_health_readiness_models_and_numbers(service: Service, desk: Desk, clip: Path) -> None:
    client = service()
    assert client.get("/healthz").json() == {"status": "ok", "message": "", "version": __version__}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "not ready"), "this desk has no workers"
    assert [m["name"] for m in client.get("/v1/models").json()["models"]] == ["demo"]
    ask(client, clip)
    end(desk)
    client.get("/v1/jobs/nothing")
    client.get("/<script>")
    text = client.get("/metrics").text
    for line in (
        'latentsync_jobs{state="done"} 1.0',
        "latentsync_jobs_submitted_total 1.0",
        "latentsync_frames_total 10.0",
        'latentsync_workers{state="idle"} 0.0',
        'latentsync_http_requests_total{method="POST",route="/v1/jobs",status="202"} 1.0',
        'latentsync_http_requests_total{method="GET",route="/v1/jobs/{id}",status="404"} 1.0',
        'latentsync_http_requests_total{method="GET",route="other",status="404"} 1.0',
    ):
        assert line in text, line
    assert "<script" not in text


def test_events_tell_of_every_change_and_end(service: Service, desk: Desk, clip: Path) -> None:
    client = service()
    here = ask(client, clip)["links"]["self"]
    end(desk)
    with client.stream("GET", f"{here}/events") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        lines = list(stream.iter_lines())
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert told == [client.get(here).json()]
    assert {"retry: 2000", "event: job"} <= set(lines)
    assert client.get("/v1/jobs/nothing/events").status_code == 404
    crowded = service(streams=0).get(f"{here}/events")
    assert (crowded.status_code, crowded.json()["error"]["kind"]) == (429, "TooOften")


def test_the_manual_holds_every_route_and_loads_nothing(service: Service) -> None:
    client = service()
    answer = client.get("/", follow_redirects=True)
    assert answer.status_code == 200
    spec = client.get("/openapi.json").json()
    for path in spec["paths"]:
        assert f"<code>{path}</code>" in answer.text
    assert "batch_windows" in answer.text
    assert not {"src=", "<script", "http://", "@import"} & set(answer.text.split()), "nothing from elsewhere"
    assert "https://" not in answer.text.replace("https://a.example", "")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_errors_have_one_form(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = service()
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("PUT", "/v1/jobs", 405),
        ("GET", "/v1/jobs/../../etc/passwd", 404),
        ("GET", "/v1/jobs/a%00b", 404),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status, path
        assert set(answer.json()["error"]) == {"kind", "message"}
    assert client.put("/v1/jobs").headers["Allow"]
    assert client.post("/v1/jobs", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415

    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Desk, "models", broken)
    fault = client.get("/v1/models")
    assert (fault.status_code, fault.json()["error"]["kind"]) == (500, "InternalError")
    assert "secret detail" not in fault.text
    assert "Traceback" not in fault.text


def test_addresses_where_they_are_taken(service: Service, desk: Desk, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fetching itself is tested in test_addresses; here, that its rules hold for every field and that what is fetched becomes the job's."""

    async def inside(host: str, port: int) -> list[str]:
        return ["10.0.0.1"]

    client = service(allow_urls=True, webhook_secret="0123456789abcdef", keeper=Doorkeeper(resolve=inside))
    for fields in (
        {"video_url": "http://a.example/v.mp4", "audio_url": "http://a.example/a.wav"},
        {"video_url": "http://a.example/v.mp4", "segments": [{"start": 0, "end": 1, "audio_url": "http://a.example/a.wav"}]},
    ):
        answer = client.post("/v1/jobs", json=fields)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "AddressRefused")
    answer = client.post("/v1/jobs", files=files(clip), data={"webhook_url": "http://a.example/"})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "AddressRefused")
    assert folders(desk) == []

    async def fetched(url: str, place: Any, keeper: Any, **limits: Any) -> Path:
        path = place(url.rpartition("/")[2])
        path.write_bytes((clip / ("sample.mp4" if "mp4" in url else "speech.wav")).read_bytes())
        return path

    monkeypatch.setattr("latentsync.serve.api.fetch", fetched)
    url = "http://a.example/"
    answer = client.post("/v1/jobs", json={"video_url": f"{url}v.mp4", "audio_url": f"{url}a.wav", "steps": 2})
    assert answer.status_code == 202, answer.text
    assert (answer.json()["request"]["video"], answer.json()["request"]["audio"]) == ("v.mp4", "a.wav")
    two = [{"start": 0, "end": 0.1, "audio_url": f"{url}b.wav"}, {"start": 0.2, "end": 0.3, "audio_url": f"{url}b.wav"}]
    answer = client.post("/v1/jobs", json={"video_url": f"{url}v.mp4", "segments": two})
    assert answer.status_code == 202, answer.text
    assert len(desk.get(answer.json()["id"]).request.files) == 2, "an address is fetched once"
    both = client.post("/v1/jobs", files=files(clip), data={"video_url": f"{url}v.mp4"})
    assert (both.status_code, "both given" in both.text) == (422, True)
