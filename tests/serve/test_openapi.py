"""The service against its own OpenAPI document: what schemathesis makes up is answered as the document says, and never by a fault."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from latentsync.jobs import Desk, Limits
from latentsync.serve import keys
from latentsync.serve.addresses import Doorkeeper
from latentsync.serve.api import create_app
from latentsync.serve.settings import Settings
from tests.serve.conftest import ask, end

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    missing_required_header,
    unsupported_method,
]


async def nowhere(host: str, port: int) -> list[str]:
    raise OSError("no network in tests")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[Any]:
    from starlette.testclient import TestClient

    with Desk(tmp_path_factory.mktemp("data"), models=["demo"], limits=Limits(min_free_bytes=1 << 20), workers=False) as desk:
        chosen = Settings(rate=0, allow_urls=True, webhook_secret="0123456789abcdef", keeper=Doorkeeper(resolve=nowhere))
        app = create_app(desk, chosen)
        desk.ready = lambda: ""  # type: ignore[method-assign]  # else /readyz says 503, rightly
        with TestClient(app) as client:
            ask(client, clip)
            end(desk)
        yield app


OPERATIONS = (
    "GET /healthz", "GET /readyz", "GET /metrics", "GET /v1/models", "POST /v1/jobs", "GET /v1/jobs", "GET /v1/jobs/{id}", "DELETE /v1/jobs/{id}",
    "POST /v1/jobs/{id}/cancel", "GET /v1/jobs/{id}/result", "GET /v1/jobs/{id}/preview", "GET /v1/jobs/{id}/events",
)  # fmt: skip


EXAMPLES = int(os.environ.get("LATENTSYNC_EXAMPLES", "8"))  # of each way to ask; hundreds for a thorough look
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
ASKED = [(o, POSITIVE) for o in OPERATIONS] + [("POST /v1/jobs", NEGATIVE), ("GET /v1/jobs", NEGATIVE)]


@pytest.mark.parametrize(("operation", "mode"), ASKED, ids=[f"{o} {m.value}" for o, m in ASKED])
def test_the_service_keeps_its_word(served: Any, operation: str, mode: GenerationMode) -> None:
    method, path = operation.split(" ")
    asked = schemathesis.openapi.from_asgi("/openapi.json", served)[path][method]
    seen = 0

    @given(case=asked.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES if path == "/v1/jobs" else 2,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def keeps(case: schemathesis.Case) -> None:
        nonlocal seen
        seen += 1
        case.call_and_validate(checks=CHECKS)

    keeps()
    assert seen


def test_every_operation_is_asked(served: Any) -> None:
    there = {f"{method.upper()} {path}" for path, item in served.openapi()["paths"].items() for method in item}
    assert there == set(OPERATIONS)


def test_the_document_is_the_same_with_keys(tmp_path: Path) -> None:
    with Desk(tmp_path / "data", models=["demo"], workers=False) as desk:
        with_keys = create_app(desk, Settings(keys=keys.read(["a:0123456789abcdef"], "here"))).openapi()
        without = create_app(desk, Settings()).openapi()
    assert with_keys["paths"].keys() == without["paths"].keys()
    form = without["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(form) == {"multipart/form-data"}, "addresses are not offered where they are not taken"
    assert "video_url" not in form["multipart/form-data"]["schema"]["properties"]
