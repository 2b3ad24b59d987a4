"""The doctor on this machine, and on one made poorer by its variables."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from latentsync.doctor import Check, _numbers, examine

from .test_hub import VARIABLES


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*VARIABLES, "LATENTSYNC_WEIGHTS_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LATENTSYNC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_can_work() -> None:
    checks = examine()
    assert [c.line() for c in checks if c.state == "fail"] == []
    found = by_name(checks)
    assert {"python", "packages", "torch", "device", "encoders", "decoders", "opencv", "model 1.6", "model 1.5", "disk", "environment"} <= set(found)
    assert any(dtype in found["device"].text for dtype in ("fp32", "bf16", "fp16"))
    json.dumps([c.plain() for c in checks])


def test_missing_weights_name_the_command_that_fetches_them(tmp_path: Path) -> None:
    found = by_name(examine())
    assert found["model 1.6"].state == "warn"
    assert found["model 1.6"].fix == "latentsync models download 1.6"
    assert "5.49 GB" in found["model 1.6"].text
    assert found["face"].fix == "latentsync models download face"
    assert str(tmp_path / "home") in found["looked in"].text
    assert not (tmp_path / "home").exists()  # looking leaves no trace


def test_face_files_are_found(public_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", str(public_weights))
    assert by_name(examine())["face"].state == "ok"


def test_variables_in_force_are_shown_and_secrets_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSYNC_MIRROR", "http://mirror.example")
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://someone:password@proxy.example:3128")
    monkeypatch.setenv("LATENTSYNC_OFFLINE", "1")
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", os.pathsep.join(["/no/such/folder"]))
    checks = examine()
    found = by_name(checks)
    everything = "\n".join(c.line() for c in checks)
    assert "LATENTSYNC_MIRROR=http://mirror.example" in found["environment"].text
    assert "proxy.example:3128" in everything
    assert "secret" not in everything
    assert "password" not in everything
    assert found["network"].fix == "unset LATENTSYNC_OFFLINE"
    assert "/no/such/folder" in found["search path"].text


def test_versions_compare_as_numbers() -> None:
    assert _numbers("2.13.0+cpu") > _numbers("2.4")
    assert _numbers("4.48") < _numbers("4.100.1")
    assert _numbers("5.0.0.rc1") == (5, 0, 0, 1)
    assert _numbers("dev") == ()
