"""The command: what it refuses, and a page that starts, answers and ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from latentsync.cli_app import PASSWORD
from latentsync.errors import UsageError
from tests.conftest import invoked

pytest.importorskip("gradio", reason="gradio is not installed")


def test_a_public_address_needs_a_password(monkeypatch):
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(UsageError, match="--password"):
        invoked("app", "--share")


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="another one with --port"):
            invoked("app", "--port", taken.getsockname()[1])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_it_starts_answers_and_leaves_nothing(tmp_path):
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    words = ["app", "--port", "0", "--model", "demo", "--device", "cpu", "--min-free-gigabytes", "0"]
    started = subprocess.Popen(
        [sys.executable, "-m", "latentsync", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp), PASSWORD: "secret"},
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(found.group(), timeout=60)
        assert refused.value.code == 401
        assert list(tmp.iterdir()) != []
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=120)
    finally:
        started.kill()
    assert started.returncode == 0, err
    assert "results are deleted" in out
    assert "Traceback" not in err
    assert [p for p in tmp.iterdir() if p.name.startswith("latentsync")] == []
