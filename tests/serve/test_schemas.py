"""What a job may say: the options of the command line, no more and no fewer, in a form as in JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from latentsync.errors import UsageError
from latentsync.options import Options, options
from latentsync.serve.schemas import BOUNDS, CHOICES, OPTIONS, SAID, WRITTEN, Asked, read_fields, read_json


def test_the_options_are_those_of_the_command_line() -> None:
    names = {f.name for f in dataclasses.fields(Options)}
    assert set(OPTIONS) == names <= set(Asked.model_fields)
    assert set(SAID) == names, "every option says what it is"
    described = Asked.model_json_schema()["properties"]
    assert all(described[name].get("description") for name in names)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_those_of_the_options(name: str) -> None:
    low, high = BOUNDS[name]
    for value, good in ((low, True), (high, True), (low - 1, False), (high + 1, False)):
        for takes in (lambda v: options(**{name: v}), lambda v: read_json(json.dumps({name: v}).encode())):
            if good:
                takes(value)
            else:
                with pytest.raises(UsageError):
                    takes(value)


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_those_of_the_options(name: str) -> None:
    for value in CHOICES[name]:
        assert read_json(json.dumps({name: value}).encode()).options() == {name: value}
        options(**{name: value})
    for takes in (lambda v: options(**{name: v}), lambda v: read_fields({name: v})):
        with pytest.raises(UsageError):
            takes("nonsense")


def test_every_option_is_bounded_chosen_or_written() -> None:
    assert set(BOUNDS) | set(CHOICES) | set(WRITTEN) == set(OPTIONS)


def test_defaults_of_the_options_pass() -> None:
    plain = {k: v for k, v in dataclasses.asdict(Options()).items() if v is not None}
    assert options(**read_json(json.dumps(plain).encode()).options()) == Options()


@pytest.mark.parametrize(
    ("fields", "means"),
    [
        ({"steps": "20", "guidance": "1.5", "seed": "7"}, {"steps": 20, "guidance": 1.5, "seed": 7}),
        ({"seed": "random", "guidance": "2"}, {"seed": "random", "guidance": 2.0}),
        ({"face": "2"}, {"face": 2}),
        ({"face": "640,200"}, {"face": "640,200"}),
        ({"fps": "30000/1001"}, {"fps": "30000/1001"}),
        ({"only": "3-5,7-9"}, {"only": "3-5,7-9"}),
        ({"only": "[[3, 5]]"}, {"only": [[3, 5]]}),
        ({"codec": "hevc", "crf": "", "steps": ""}, {"codec": "hevc"}),
    ],
)
def test_forms_are_read_as_json_is(fields: dict[str, str], means: dict[str, Any]) -> None:
    asked = read_fields(fields)
    assert asked.options() == means == read_json(json.dumps(means).encode()).options()
    options(**asked.options())


def test_what_is_no_option() -> None:
    asked = read_fields({"preview": "true", "report": "0", "model": "demo", "segments": '[{"start": 1, "end": 2.5, "audio": "audio_2"}]'})
    assert (asked.preview, asked.report, asked.model, asked.options()) == (True, False, "demo", {})
    assert asked.segments is not None
    assert (asked.segments[0].start, asked.segments[0].audio) == (1.0, "audio_2")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"stepz": "2"}, "'stepz' is no field"),
        ({"steps": "two"}, "steps: "),
        ({"steps": "2.5"}, "steps: "),
        ({"steps": "999"}, "steps: "),
        ({"guidance": "nan"}, "guidance: "),
        ({"guidance": "1e999"}, "guidance: "),
        ({"preview": "maybe"}, "preview: "),
        ({"segments": "[1"}, "segments: "),
        ({"segments": "[" * 5000}, "segments: "),
        ({"segments": '[{"start": -1, "end": 2}]'}, "segments: "),
        ({"segments": '[{"start": 1, "end": 2, "audio": "../x"}]'}, "segments: "),
        ({"webhook_url": "ftp://x.example"}, "webhook_url: "),
        ({"face_backend": "magic"}, "face_backend: "),
    ],
)
def test_fields_that_cannot_be_used_are_named(fields: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_fields(fields)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b'{"steps": "2"}', b'{"steps": true}', b'{"x": 1}', b"\xff", b'{"guidance": NaN}', b"[" * 9999]
)
def test_json_that_is_no_job(body: bytes) -> None:
    with pytest.raises(UsageError):
        read_json(body)
