"""The command that serves: parse, open the desk, listen. As in `cli`, nothing heavy is imported before it runs."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsync import options as opt
from latentsync.errors import UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from latentsync.jobs import Limits
    from latentsync.serve.on_ray import Place
    from latentsync.serve.settings import Settings

PACKAGES = ("fastapi", "prometheus_client", "python_multipart", "sqlalchemy", "uvicorn")
SECRET = "LATENTSYNC_WEBHOOK_SECRET"
PATIENCE = 10  # seconds for connections to end by themselves
MEGABYTE = 1 << 20

# What `serve` and `app` ask alike.
Home = Annotated[Path | None, typer.Option(metavar="DIR", help="Where weights lie; by default LATENTSYNC_HOME, or else the platform's cache folder.")]
Devices = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, or all for every GPU; one worker for each. Repeatable.")
]
Dtype = Annotated[str, typer.Option(metavar="|".join(opt.DTYPES), help="Precision of the networks.")]
MaxMegabytes = Annotated[float, typer.Option(min=0, help="Of one upload. 0, here and below: no limit.")]
MaxSeconds = Annotated[float, typer.Option(min=0, help="Of a result.")]
MaxQueue = Annotated[int, typer.Option(min=0, help="Jobs that wait.")]
KeepHours = Annotated[float, typer.Option(min=0, help="How long a finished job and its files are kept.")]
MinFreeGigabytes = Annotated[float, typer.Option(min=0, help="Of the disk, which stay free.")]


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on: by default this machine only; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A model that jobs may name, or its folder; the first is the default. Repeatable.")
    ] = None,
    device: Devices = None,
    dtype: Dtype = "auto",
    home: Home = None,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Where jobs, their files and the database lie.")] = Path("latentsync-data"),
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL", envvar="LATENTSYNC_STORE", show_envvar=False, help="Another database, in the words of SQLAlchemy; or LATENTSYNC_STORE."
        ),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="API keys, a NAME:KEY on each line; or LATENTSYNC_API_KEYS with commas between them.")
    ] = None,
    new_key: Annotated[str, typer.Option(metavar="NAME", help="Make a key, print it, add its digest to the file of --keys, and stop.")] = "",
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let everybody in who reaches the port, without keys.")] = False,
    name: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="A host name under which the service is asked for; others are refused. Repeatable.")
    ] = None,
    proxy: Annotated[str, typer.Option(metavar="ADDRESSES", help="Of proxies in front, whose X-Forwarded-For and -Proto are believed.")] = "",
    root_path: Annotated[str, typer.Option(metavar="PATH", help="The path below which a proxy offers the service.")] = "",
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Take addresses of inputs, of the public internet only.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="A host that inputs and webhooks may name though it is not public. Repeatable.")
    ] = None,
    webhook_secret_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment variable that holds the secret of webhooks; without it none are sent.")
    ] = SECRET,
    max_megabytes: MaxMegabytes = 2048,
    max_seconds: MaxSeconds = 3600,
    max_queue: MaxQueue = 100,
    max_jobs: Annotated[int, typer.Option(min=0, help="Unfinished jobs of one key.")] = 20,
    keep_hours: KeepHours = 24,
    min_free_gigabytes: MinFreeGigabytes = 2,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second of one key, or of one address where there are no keys.")] = 20,
    burst: Annotated[int, typer.Option(min=1, help="Requests at once, before they are counted by the second.")] = 100,
    ray: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address, or auto for the one that runs here or a new one of this machine."),
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="With --ray: how many workers; 0 is one for each GPU of the cluster, or one without any.")] = 0,
) -> None:
    """Serve lip sync over HTTP: jobs are sent, wait in a queue, and are done by one worker on each device, each with one model loaded.

    Describes itself at /docs. Jobs survive a restart. Ctrl-C or SIGTERM ends it; what is at work then begins again at the next start.
    """
    need()
    if new_key:
        _add_key(new_key, keys)
        return
    settings = settings_of(
        host,
        keys=keys,
        no_auth=no_auth,
        names=tuple(name or ()),
        allow_urls=allow_urls,
        allow_hosts=tuple(allow_host or ()),
        secret=os.environ.get(webhook_secret_env) or None,
        rate=rate,
        burst=burst,
    )
    listener = listen(host, port)
    from latentsync.jobs import Desk
    from latentsync.serve.api import create_app

    limits = limits_of(max_megabytes, max_seconds, max_queue, max_jobs, keep_hours, min_free_gigabytes)
    if ray:
        if device or proxy:
            raise UsageError("--device and --proxy do not go with --ray: Ray deals out the GPUs and answers by itself")
        from latentsync.serve.on_ray import Place

        named = tuple(model or (opt.DEFAULT_MODEL,))
        place = Place(root=data.absolute(), models=named, store_url=store, limits=limits, dtype=dtype, home=home)
        _serve_on_ray(place, settings, listener, ray, root_path=root_path, workers=workers)
        return
    desk = Desk(
        data, store_url=store, limits=limits, models=tuple(model or (opt.DEFAULT_MODEL,)), devices=tuple(device or ("auto",)), dtype=dtype, home=home
    )
    lacking = [found for found in desk.models() if not found.installed]
    if len(lacking) == len(desk.models()):
        raise UsageError(f"no model to serve: {lacking[0].note}")
    with listener, desk:
        typer.echo(f"serving on {address(listener)} (what it takes: {address(listener)}/docs); jobs are kept in {desk.root}")
        for line in notes(settings, host):
            typer.echo(f"note: {line}")
        for found in lacking:
            typer.echo(f"note: {found.name} is not offered yet: {found.note.splitlines()[0]}")
        run(create_app(desk, settings), listener, proxy=proxy, root_path=root_path)
    typer.echo("stopped; jobs that were at work begin again at the next start")


def _serve_on_ray(place: Place, settings: Settings, listener: socket.socket, cluster: str, *, root_path: str, workers: int) -> None:
    from latentsync.serve.on_ray import serving

    stop = threading.Event()
    at, (host, port) = address(listener), listener.getsockname()[:2]
    listener.close()  # it was free, and Ray takes it now
    with serving(place, settings, cluster=cluster, host=host, port=port, root_path=root_path, workers=workers) as count:
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in _SIGNALS}
        try:
            typer.echo(f"serving on {at} with {count} workers of Ray (what it takes: {at}/docs); jobs are kept in {place.root}")
            for line in notes(settings, host):
                typer.echo(f"note: {line}")
            while not stop.wait(0.5):
                pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    typer.echo("stopped; jobs that were at work begin again at the next start")


def limits_of(megabytes: float, seconds: float, queue: int, jobs: int, hours: float, free_gigabytes: float) -> Limits:
    """What a desk takes on, in the words of the command line."""
    from latentsync.jobs import Limits

    return Limits(
        max_bytes=round(megabytes * MEGABYTE),
        max_seconds=seconds,
        max_queue=queue,
        max_per_owner=jobs,
        keep_hours=hours,
        min_free_bytes=round(free_gigabytes * 1024 * MEGABYTE),
    )


def need() -> None:
    """Raises UsageError where the packages of the service are not installed."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f'serving needs more packages ({", ".join(missing)}); run: pip install "latentsync[serve]"')


def _add_key(name: str, file: Path | None) -> None:
    from latentsync.serve import keys

    if file is None:
        raise UsageError("--new-key adds to the file of keys; name it with --keys FILE")
    key, line = keys.new(name)
    keys.add(file, line)
    typer.echo(key)
    typer.echo(f"the key of '{name}' is above, and is shown this once; {file} holds its digest, which a service reads when it starts", err=True)


def settings_of(
    host: str,
    *,
    keys: Path | None,
    no_auth: bool,
    names: tuple[str, ...],
    allow_urls: bool,
    allow_hosts: tuple[str, ...],
    secret: str | None,
    rate: float,
    burst: int,
) -> Settings:
    """What was chosen, where it goes together. Raises UsageError, above all for a service that everybody could use by mistake."""
    from latentsync.serve import keys as known
    from latentsync.serve.addresses import Doorkeeper
    from latentsync.serve.settings import Settings
    from latentsync.serve.webhooks import key_of

    found = known.load(keys, os.environ.get(known.VARIABLE))
    alone = is_local(host)
    if found is not None and no_auth:
        raise UsageError(f"--no-auth, and yet there are keys (--keys or {known.VARIABLE}); choose one of them")
    if found is None and not alone and not no_auth:
        raise UsageError(
            f"--host {host} lets other machines in, and there are no keys: make one with `latentsync serve --new-key NAME --keys FILE` and pass "
            "--keys FILE; or say --no-auth if everybody who reaches the port may use it"
        )
    if secret is not None:
        key_of(secret)
    local = own_names(host)
    named = tuple(n.lower() for n in names)
    return Settings(
        keys=found,
        alone=alone and not no_auth,
        hosts=tuple(dict.fromkeys((*named, *local))) if named or (found is None and alone) else None,
        allow_urls=allow_urls,
        keeper=Doorkeeper(hosts=frozenset(h.lower() for h in allow_hosts)),
        webhook_secret=secret,
        rate=rate,
        burst=burst,
    )


def own_names(host: str) -> tuple[str, ...]:
    """Names under which this machine asks for what listens on that address."""
    return "localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()


def is_local(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def notes(settings: Settings, host: str) -> list[str]:
    """What the operator should know at the start."""
    said = []
    if settings.keys is None and not settings.alone:
        said.append("everybody who reaches this port may use it (--no-auth); jobs are told apart by their ids only")
    if not is_local(host):
        said.append("this is plain HTTP; over networks that others share put a proxy with TLS in front (docs/serve.md)")
    if settings.webhook_secret is None:
        said.append(f"no webhooks are sent; set {SECRET} for them")
    return said


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UsageError where the port is taken or the address is not this machine's."""
    try:
        family, kind, number, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, number)
    except OSError as e:
        raise UsageError(f"--host {host}: this is no address of this machine ({e.strerror or e})") from e
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(1024)
    except OSError as e:
        listener.close()
        if e.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} of {host} is taken by another program; choose another one with --port") from e
        if e.errno == errno.EACCES:
            raise UsageError(f"port {port} may not be used by this user; choose one from 1024 on with --port") from e
        raise UsageError(f"cannot listen on port {port} of {host}: {e.strerror or e}") from e
    return listener


def address(listener: socket.socket) -> str:
    """Where it listens, as an address to type."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, listener: socket.socket, *, proxy: str = "", root_path: str = "") -> None:
    """Answer until a signal says to stop: once to let connections end by themselves, twice to cut them off."""
    import asyncio

    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        root_path=root_path.rstrip("/"),
        proxy_headers=bool(proxy),
        forwarded_allow_ips=proxy or None,
        limit_concurrency=2000,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=PATIENCE,
    )
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        asyncio.run(_server(uvicorn.Server, config, app).serve([listener]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


def _server(base: type[Any], config: Any, app: FastAPI) -> Any:
    """A uvicorn server that ends without raising the signal again, so that the desk is closed in peace, and that ends event streams."""

    import asyncio

    class Server(base):  # type: ignore[misc]
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for number in _SIGNALS:
                loop.add_signal_handler(number, self.leave)
            try:
                yield
            finally:
                for number in _SIGNALS:
                    loop.remove_signal_handler(number)

        def leave(self) -> None:
            again, self.should_exit = app.state.stopping.is_set(), True
            self.force_exit = again
            app.state.stopping.set()

    return Server(config)
