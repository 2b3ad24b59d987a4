"""The page as an ASGI application, and as a server of this machine."""

from __future__ import annotations

import mimetypes
import secrets
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from latentsync.app.gate import Gate
from latentsync.app.models import Models
from latentsync.app.pieces import file_name
from latentsync.app.visitors import Door, Uploads, owner
from latentsync.errors import LatentSyncError, OutputError, UsageError
from latentsync.jobs import Desk

SWEEP = 600.0  # seconds between two looks for uploads that nobody uses
KEPT = "private, max-age=3600"  # results do not change
MEDIA = ("video/", "audio/", "image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/avif")  # what a browser may show in the page


def application(
    desk: Desk,
    models: Sequence[str | Path],
    *,
    password: str = "",
    downloads: bool = True,
    hosts: Collection[str] | None = None,
    home: Path | None = None,
) -> Door:
    """The page over a desk that is started. models: names or folders, as the desk has them. hosts: see `Door`."""
    from latentsync.app import page

    uploads = Uploads(desk.root / "uploads")
    page.prepare(uploads.folder)
    import gradio as gr

    from latentsync.app.actions import Actions

    sources = {Path(str(model)).name if Path(str(model)).is_dir() else str(model): str(model) for model in models}
    actions = Actions(desk, uploads, Models(sources, home=home, downloads=downloads))
    threading.Thread(target=actions.warm, name="face finder").start()  # no daemon: an interpreter that ends in the midst of its C++ aborts
    outer = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    outer.router.routes.append(Route("/job/{id}/{what}", _files(desk), methods=["GET", "HEAD"]))
    outer.router.routes.append(Route("/favicon.ico", _icon, methods=["GET", "HEAD"]))
    options: dict[str, Any] = page.looks()
    most = desk.limits.max_bytes or None
    gr.mount_gradio_app(
        outer,
        page.build(actions).queue(api_open=False, default_concurrency_limit=None),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=most,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **options,
    )
    gate = Gate(password) if password else None
    return Door(outer, uploads, gate=gate, max_bytes=most, min_free_bytes=desk.limits.min_free_bytes, hosts=hosts)


def _files(desk: Desk) -> Callable[[Request], Any]:
    """Serves the files of a job to its owner: in pieces, so that players can seek."""

    async def answer(request: Request) -> Response:
        who = owner(request.headers.get("cookie"))
        what = request.path_params["what"]

        def find() -> tuple[Path, str]:
            job = desk.get(request.path_params["id"], who)
            places: dict[str, Callable[[], Path]] = {
                "result": lambda: desk.result_path(job),
                "preview": lambda: desk.preview_path(job),
                "before": lambda: desk.input_path(job, "video"),
            }
            if what not in places:
                raise UsageError("no such file")
            path = places[what]()
            return path, Path(file_name(job)).stem + path.suffix

        try:
            if not who:
                raise UsageError("nobody's")
            path, name = await run_in_threadpool(find)
        except LatentSyncError:
            return PlainTextResponse("there is nothing here, or it is not yours", 404)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        shown = "inline" if kind.startswith(MEDIA) and "download" not in request.query_params else "attachment"
        cached = "private, no-store" if what == "preview" else KEPT
        named = name if what == "result" else path.name
        return FileResponse(path, media_type=kind, filename=named, content_disposition_type=shown, headers={"cache-control": cached})

    return answer


async def _icon(_: Request) -> Response:
    return Response(ICON, media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})


class Server:
    """The page on an address of this machine, in a thread."""

    def __init__(self, door: Door, listener: socket.socket) -> None:
        """listener: a socket that listens."""
        self._door, self._listener = door, listener
        config = uvicorn.Config(
            door, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=3, timeout_keep_alive=30, limit_concurrency=1000
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="page", daemon=True)
        self._over = threading.Event()

    @property
    def address(self) -> str:
        """To be opened in a browser."""
        host, port = self._listener.getsockname()[:2]
        shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{port}/"

    @property
    def runs(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def __enter__(self) -> Server:
        self._thread.start()
        threading.Thread(target=self._sweep, name="sweep of uploads", daemon=True).start()
        while not self._server.started and self.runs:
            self._over.wait(0.02)
        if not self.runs:
            raise OutputError(f"the page could not be served on {self.address}")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.should_exit = True
        self._thread.join(10.0)

    def share(self) -> str:
        """A public address that leads here, through a server of Gradio's makers. Raises OutputError where it cannot be had."""
        from gradio import networking

        try:
            host, port = self._listener.getsockname()[:2]
            return networking.setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
        except (OSError, ValueError, RuntimeError) as e:
            raise OutputError(f"no public address could be had: {e}") from e

    def _sweep(self) -> None:
        while not self._over.wait(SWEEP):
            self._door.uploads.sweep()


ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><rect width='32' height='32' rx='8' fill='#1f5fbf'/>"
    "<path d='M6 16c4-5 7-5 10-3 3-2 6-2 10 3-4 6-7 7-10 7s-6-1-10-7z' fill='#fff'/><path d='M8 16c6 2 10 2 16 0' stroke='#1f5fbf' "
    "stroke-width='1.6' fill='none'/></svg>"
)
