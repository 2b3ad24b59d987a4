"""`latentsync serve` as an operator types it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from latentsync import cli_serve
from latentsync.errors import UsageError
from latentsync.serve import keys
from latentsync.serve.settings import Settings
from tests.conftest import invoked


def settings(host: str = "127.0.0.1", **more: object) -> Settings:
    given: dict[str, object] = {
        "keys": None, "no_auth": False, "names": (), "allow_urls": False, "allow_hosts": (), "secret": None, "rate": 1.0, "burst": 1
    }  # fmt: skip
    return cli_serve.settings_of(host, **{**given, **more})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (keys.VARIABLE, cli_serve.SECRET, "LATENTSYNC_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_are_let_in_with_keys_or_on_purpose_only(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no keys"):
        settings(host)
    opened = settings(host, no_auth=True)
    assert (opened.keys, opened.alone) == (None, False)
    monkeypatch.setenv(keys.VARIABLE, "a:0123456789abcdef")
    assert settings(host).keys is not None
    with pytest.raises(UsageError, match="choose one"):
        settings(host, no_auth=True)


def test_this_machine_needs_no_keys_and_answers_to_its_name_only() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        found = settings(host)
        assert found.alone
        assert found.hosts is not None
        assert "localhost" in found.hosts
    assert settings("127.0.0.1", names=("Lips.example",)).hosts[0] == "lips.example"  # type: ignore[index]
    assert settings("0.0.0.0", no_auth=True).hosts is None


def test_secrets_that_can_be_guessed_are_refused() -> None:
    with pytest.raises(UsageError, match="could be guessed"):
        settings(secret="short")


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is taken"):
            invoked("serve", "--port", port, "--model", "demo")
    with pytest.raises(UsageError, match="no address of this machine"):
        cli_serve.listen("no such host.invalid", 0)


def test_a_new_key_is_printed_once(tmp_path: Path) -> None:
    done = invoked("serve", "--new-key", "alice", "--keys", tmp_path / "keys")
    key = done.stdout.split()[0]
    known = keys.load(tmp_path / "keys", None)
    assert known is not None
    assert known.owner(key) == "alice"
    with pytest.raises(UsageError, match="--keys"):
        invoked("serve", "--new-key", "alice")


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else name)
    with pytest.raises(UsageError, match=r'fastapi.*pip install "latentsync\[serve\]"'):
        invoked("serve")


def test_no_model_no_service(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model to serve"):
        invoked("serve", "--port", 0, "--model", "1.5", "--home", tmp_path / "empty", "--data", tmp_path / "data")


def test_the_command_serves_and_stops(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "latentsync", "serve", "--port", "0", "--model", "demo", "--device", "cpu", "--data", str(tmp_path / "data")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        url = first.split()[2]
        assert "docs" in first
        assert str(tmp_path / "data") in first
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        assert httpx.get(f"{url}/healthz").headers.get("server") is None
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, err
    assert "stopped" in out
    assert "Traceback" not in err
