"""Inputs that are named by their address instead of sent: fetched under the rules of `addresses`, with limits counted while they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import httpx

from latentsync.serve.addresses import Doorkeeper, ask, client
from latentsync.serve.problems import AddressFailed, AddressRefused
from latentsync.serve.sink import Sink

REDIRECTS = 5
SILENCE = 30.0  # seconds without a byte
_SUFFIXES = {
    "video/mp4": ".mp4", "video/quicktime": ".mov", "video/webm": ".webm", "video/x-matroska": ".mkv", "video/x-msvideo": ".avi",
    "image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/bmp": ".bmp",
    "audio/wav": ".wav", "audio/x-wav": ".wav", "audio/mpeg": ".mp3", "audio/mp4": ".m4a", "audio/flac": ".flac", "audio/ogg": ".ogg",
}  # fmt: skip


async def fetch(url: str, place: Callable[[str], Path], keeper: Doorkeeper, *, most: int, check: Callable[[], None], seconds: float) -> Path:
    """Fetch `url` into the file that `place` names for the name it has there.

    most: bytes (0: any number); check: called now and then, raises DiskFull; seconds: for all of it.
    Raises AddressRefused, AddressFailed, TooLarge, DiskFull; what was written by then is the caller's to delete.
    """
    try:
        return await asyncio.wait_for(_fetch(url, place, keeper, most, check), seconds)
    except asyncio.TimeoutError:
        raise AddressFailed(f"{shown(url)} was not there within {seconds:.0f} s; upload the file instead") from None
    except httpx.HTTPError as e:
        raise AddressFailed(f"{shown(url)} cannot be fetched: {type(e).__name__} {e}".rstrip()) from e


def shown(url: str) -> str:
    """An address for messages: without its query, which may hold a token."""
    return url.partition("?")[0].partition("#")[0][:200]


async def _fetch(url: str, place: Callable[[str], Path], keeper: Doorkeeper, most: int, check: Callable[[], None]) -> Path:
    async with client(SILENCE) as asker:
        for _ in range(REDIRECTS + 1):
            where = await keeper.check(url)
            response = await ask(asker, "GET", where)
            try:
                if response.is_redirect:
                    try:
                        url = str(where.url.join(response.headers["Location"]))
                    except httpx.InvalidURL:
                        raise AddressRefused(f"{where.shown()} redirects to what is no address") from None
                    continue
                if response.status_code != 200:
                    raise AddressFailed(f"{where.shown()} answers {response.status_code} instead of a file; is the link still good?")
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise AddressFailed(f"{where.shown()} comes packed as {response.headers['Content-Encoding'][:40]!r}, which was not asked for")
                async with Sink(place(name_of(where.url, response.headers)), f"the file at {where.shown()}", most=most, check=check) as sink:
                    stated = response.headers.get("Content-Length", "")
                    if stated.isdigit():
                        sink.expect(int(stated))
                    async for block in response.aiter_raw():
                        await sink.write(block)
                if not sink.size:
                    raise AddressFailed(f"{where.shown()} is empty")
                return sink.path
            finally:
                await response.aclose()
        raise AddressFailed(f"{shown(url)} is behind more than {REDIRECTS} redirects")


def name_of(url: httpx.URL, headers: httpx.Headers) -> str:
    """What the file may be called, for its suffix: the last part of the address, or else what the type says."""
    last = PurePosixPath(unquote(url.path)).name
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return last if PurePosixPath(last).suffix else f"file{_SUFFIXES.get(kind, '')}"
