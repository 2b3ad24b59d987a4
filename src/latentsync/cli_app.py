"""The command that shows the web page: parse, open the desk, listen. As in `cli`, nothing heavy is imported before it runs."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from latentsync import options as opt
from latentsync.cli_serve import (
    Devices,
    Dtype,
    Home,
    KeepHours,
    MaxMegabytes,
    MaxQueue,
    MaxSeconds,
    MinFreeGigabytes,
    is_local,
    limits_of,
    listen,
    own_names,
)
from latentsync.errors import UsageError

PACKAGES = ("gradio", "sqlalchemy")
PASSWORD = "LATENTSYNC_APP_PASSWORD"
MODELS = (opt.DEFAULT_MODEL, "1.5", "demo")  # offered unless others are named


def app(
    host: Annotated[
        str, typer.Option(help="The address to listen on: by default this machine only; 0.0.0.0 is every network it is in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"A model that visitors may choose, or its folder. Repeatable; by default {', '.join(MODELS)}."),
    ] = None,
    device: Devices = None,
    dtype: Dtype = "auto",
    home: Home = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep jobs and results here, also for the next start; by default they go with the page.")
    ] = None,
    password: Annotated[bool, typer.Option("--password", help=f"Ask for a password now, and visitors for it later; or set {PASSWORD}.")] = False,
    name: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="A host name under which the page is asked for; others are refused. Repeatable.")
    ] = None,
    downloads: Annotated[
        bool | None,
        typer.Option("--downloads/--no-downloads", help="Whether visitors may download models; by default on this machine only, or with a password."),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Also a public address, through a server of Gradio's makers. Needs a password.")] = False,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    max_megabytes: MaxMegabytes = 2048,
    max_seconds: MaxSeconds = 3600,
    max_queue: MaxQueue = 100,
    max_jobs: Annotated[int, typer.Option(min=0, help="Unfinished jobs of one visitor.")] = 5,
    keep_hours: KeepHours = 24,
    min_free_gigabytes: MinFreeGigabytes = 2,
) -> None:
    """Show a web page for lip sync: a video and a sound in, watch it being made, and fetch the result.

    Visitors see their own files only. Models stay loaded between jobs, one worker on each device. Ctrl-C ends it.
    """
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f'the page needs more packages ({", ".join(missing)}); run: pip install "latentsync[app]"')
    secret = _password(password)
    if share and not secret:
        raise UsageError(f"--share lets everybody in who has the address; add --password, or set {PASSWORD}")
    listener = listen(host, port)
    from latentsync.app.server import Server, application
    from latentsync.jobs import Desk

    limits = limits_of(max_megabytes, max_seconds, max_queue, max_jobs, keep_hours, min_free_gigabytes)
    named = tuple(model or MODELS)
    desk = Desk(data, limits=limits, models=_ready_first(named, home), devices=tuple(device or ("auto",)), dtype=dtype, home=home)
    allowed = downloads if downloads is not None else (is_local(host) or bool(secret))
    hosts = _hosts(host, name or [], open_to_all=bool(secret))
    with listener, desk, _told() as stop:
        with Server(application(desk, named, password=secret, downloads=allowed, hosts=hosts, home=home), listener) as server:
            typer.echo(f"the page is at {server.address}")
            if share:
                typer.echo(f"and for everybody who has the password at {server.share()}")
            if not is_local(host):
                said = "visitors are asked for the password" if secret else f"everybody who reaches it may use it: set {PASSWORD}, or --password"
                typer.echo(f"note: {said}; this is plain HTTP, so put a proxy with TLS in front where others share the network (docs/app.md)")
            if browser:
                webbrowser.open(server.address)
            while server.runs and not stop.wait(0.5):
                pass
        typer.echo("stopping; results are kept" if data else "stopping; results are deleted")


def _hosts(host: str, names: list[str], *, open_to_all: bool) -> tuple[str, ...] | None:
    """Names under which the page may be asked for; None: any. A page for this machine alone answers to no name of somebody else's."""
    if not names and (open_to_all or not is_local(host)):
        return None
    return (*names, *own_names(host))


def _password(ask: bool) -> str:
    """From the environment, or asked for; never from the command line, which other users of the machine can read."""
    found = os.environ.get(PASSWORD, "")
    if ask and not found:
        found = str(typer.prompt("Password for visitors", hide_input=True, confirmation_prompt=True))
    return found


def _ready_first(models: tuple[str, ...], home: Path | None) -> tuple[str, ...]:
    """The models, those that are here first: the first is loaded at the start."""
    from latentsync import weights
    from latentsync.errors import WeightsError

    def absent(model: str) -> bool:
        try:
            weights.resolve(model, home=home, need=weights.roles())
        except WeightsError:
            return True
        return False

    return tuple(sorted(models, key=absent))


@contextmanager
def _told() -> Iterator[threading.Event]:
    """An event that is set when a signal says to stop."""
    stop = threading.Event()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
