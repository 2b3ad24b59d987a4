"""Fetching one file over HTTP so that it is either there, whole and checked, or not there at all.

An interrupted transfer continues where it stopped (`<file>.part` beside the target, tied to its validator in `<file>.part.json`), the size and the
sha256 are checked before the atomic rename, and two processes that want the same file wait for one another.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urljoin, urlsplit

from latentsync import __version__
from latentsync.errors import WeightsError

if TYPE_CHECKING:
    import httpx

HUB = "https://huggingface.co"
REPORT_EVERY = 0.1  # seconds
REDIRECTS = 10
TRIES = 5  # in a row without a single new byte
SPARE = 64 << 20  # bytes of disk to leave free, so that a download does not fill the last block of a system disk
HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Progress:
    """What is being done with one file. `done` and `total` are bytes; `total` is None where the server does not say."""

    file: str
    state: Literal["waiting", "downloading", "retrying", "checking", "converting", "done", "present"]
    done: int = 0
    total: int | None = None
    note: str = ""


Report = Callable[[Progress], None]


def offline() -> str | None:
    """Name and value of the variable that forbids network use, or None."""
    for name in ("LATENTSYNC_OFFLINE", "HF_HUB_OFFLINE"):
        value = os.environ.get(name, "")
        if value.strip().lower() not in ("", "0", "false", "no", "off"):
            return f"{name}={value}"
    return None


def mirrored(url: str) -> str:
    """The address to ask instead, where a mirror is named.

    LATENTSYNC_MIRROR replaces `https://huggingface.co`, and files of any other host are asked from it as `<mirror>/<host>/<path>`. HF_ENDPOINT,
    the variable of the Hugging Face tools, replaces only the hub.
    """
    mirror = os.environ.get("LATENTSYNC_MIRROR", "").rstrip("/")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if url.startswith(HUB + "/"):
        return (mirror or endpoint or HUB) + url[len(HUB) :]
    if mirror:
        parts = urlsplit(url)
        return f"{mirror}/{parts.netloc}{parts.path}" + (f"?{parts.query}" if parts.query else "")
    return url


_held: set[int] = set()  # open files whose locks this process holds


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


# A lock belongs to all processes that have its file open. What is forked off, such as a worker, must not keep it alive beyond its holder.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(target: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the only right to write `target`, among processes and threads. The system frees it when its holder dies.

    `waiting` is called once if another one holds it. A process that is forked off within it does not hold it.
    """
    path = target.with_name(f".{target.name}.lock")
    told = False
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as e:
            raise WeightsError(f"cannot write in {path.parent}: {e.strerror or e}; name another folder with LATENTSYNC_HOME") from e
        if try_lock(handle):
            if _same(handle, path):
                break
            os.close(handle)  # the former holder removed this file between our open and our lock
            continue
        os.close(handle)
        if waiting is not None and not told:
            waiting()
            told = True
        time.sleep(0.1)
    _held.add(handle)
    try:
        yield
    finally:
        if handle in _held:  # not so in a process that was forked off
            if sys.platform != "win32":
                path.unlink(missing_ok=True)  # under the lock: whoever waits sees that the file is gone and opens a new one
            _held.remove(handle)
            os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def try_lock(handle: int) -> bool:
        """Lock an open file, until it is closed or its holder dies; whether that could be done at once."""
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _same(handle: int, path: Path) -> bool:
        return True  # there the lock file stays

else:
    import fcntl

    def try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _same(handle: int, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), path.stat())
        except FileNotFoundError:
            return False


def fetch(url: str, target: Path, *, size: int | None = None, sha256: str | None = None, report: Report | None = None, pause: float = 1.0) -> Path:
    """Fetch `url` into `target` and return it.

    size, sha256: what the content must be, in bytes and 64 hex digits; where not given, the hub's own statement is used. An existing target of
    the right size is kept. `pause`: seconds before the first retry; it doubles, to at most 30.
    Raises WeightsError with the address, the cause and what to try.
    """
    return _Fetch(url, target, size, sha256, report, pause).run()


@dataclass
class _Again(Exception):
    """This attempt failed in a way that another one may mend."""

    cause: str
    after: float | None = None  # seconds that the server asks to wait


class _Fetch:
    """One file on its way. Lives for one `fetch`."""

    def __init__(self, url: str, target: Path, size: int | None, sha256: str | None, report: Report | None, pause: float) -> None:
        self.source = url
        self.url = mirrored(url)
        self.shown = re.sub(r"//[^/@]*@", "//", self.url)  # in messages: a mirror's address may hold a password
        self.target = target
        self.part = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.size = size
        self.sha256 = sha256
        self.known = sha256 is not None
        self.report = report
        self.pause = pause

    def tell(self, state: Literal["waiting", "downloading", "retrying", "checking", "done", "present"], note: str = "") -> None:
        if self.report is not None:
            done = self.target if state in ("done", "present") else self.part
            self.report(Progress(self.target.name, state, _size(done), self.size, note))

    def run(self) -> Path:
        if self.there():
            self.tell("present")
            return self.target
        forbidden = offline()
        if forbidden:
            raise WeightsError(
                f"{self.target.name} is not on this machine and {forbidden} forbids fetching {self.shown}; unset it, "
                f"or copy the file to {self.target} or into a folder named by LATENTSYNC_WEIGHTS_PATH"
            )
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise WeightsError(f"cannot make the folder {self.target.parent}: {e.strerror or e}; name another one with LATENTSYNC_HOME") from e
        with locked(self.target, lambda: self.tell("waiting", "another process is fetching this file")):
            if self.there():  # fetched by the one we waited for
                self.tell("present")
                return self.target
            self.check_space()
            self.transfer()
            for attempt in (1, 2):
                wrong = self.wrong()
                if wrong is None:
                    break
                self.forget()
                if attempt == 2:
                    raise WeightsError(
                        f"{self.shown} came damaged twice: {wrong}. Nothing was kept. Try again later, over another network, or through a mirror "
                        "(LATENTSYNC_MIRROR); if it persists the file has been replaced at its source"
                    )
                self.tell("retrying", wrong)
                self.transfer()
            self.part.replace(self.target)
            self.note.unlink(missing_ok=True)
        self.tell("done")
        return self.target

    def there(self) -> bool:
        return self.target.is_file() and (self.size is None or self.target.stat().st_size == self.size)

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def check_space(self) -> None:
        if self.size is None:
            return
        needed = self.size - _size(self.part) + SPARE
        free = shutil.disk_usage(self.target.parent).free
        if free < needed:
            raise WeightsError(
                f"{self.target.name} needs {needed / 1e9:.2f} GB and {self.target.parent} has {free / 1e9:.2f} GB free; free some space or name a "
                "folder on another disk with LATENTSYNC_HOME"
            )

    def wrong(self) -> str | None:
        """What is wrong with the finished part, or None."""
        found = _size(self.part)
        if self.size is not None and found != self.size:
            return f"{found} bytes instead of {self.size}"
        if self.sha256 is None:
            return None
        self.tell("checking")
        h = hashlib.sha256()
        with self.part.open("rb") as f:
            while block := f.read(8 << 20):
                h.update(block)
        return None if h.hexdigest() == self.sha256 else f"sha256 {h.hexdigest()} instead of {self.sha256}"

    def transfer(self) -> None:
        """Bring the part to its full length, through as many requests as that takes."""
        import httpx

        failures = 0
        timeout = httpx.Timeout(60.0, connect=20.0)
        with httpx.Client(timeout=timeout, follow_redirects=False, headers={"User-Agent": f"latentsync/{__version__}"}) as client:
            while True:
                before = _size(self.part)
                try:
                    self.attempt(client)
                except _Again as e:
                    cause, after = e.cause, e.after
                except (httpx.InvalidURL, httpx.UnsupportedProtocol) as e:
                    raise WeightsError(f"{self.shown} is not an address that can be fetched ({e}); look at LATENTSYNC_MIRROR and HF_ENDPOINT") from e
                except httpx.TransportError as e:
                    cause, after = f"{type(e).__name__}: {e}", None
                except OSError as e:
                    hint = "; free some space and run the same command, it continues from there" if e.errno == errno.ENOSPC else ""
                    raise WeightsError(f"cannot write {self.part}: {e.strerror or e}{hint}") from e
                else:
                    return
                failures = 1 if _size(self.part) > before else failures + 1
                if failures >= TRIES:
                    raise WeightsError(
                        f"could not fetch {self.shown} ({cause}), tried {TRIES} times. Look at the network and the proxy (HTTPS_PROXY, NO_PROXY), or "
                        f"name a mirror with LATENTSYNC_MIRROR; {_size(self.part)} bytes are kept and the same command continues from there"
                    )
                self.tell("retrying", cause)
                wait = min(30.0, self.pause * 2 ** (failures - 1)) * random.uniform(
                    0.8, 1.2
                )  # spread, so that many machines do not come back at once
                time.sleep(wait if after is None else min(after, 60.0))

    def attempt(self, client: httpx.Client) -> None:
        """One request from where the part ends; returns when the part is complete."""
        start, validator = self.resume_point()
        headers = {"Accept-Encoding": "identity"}  # ranges and lengths count the bytes of the file itself
        if start:
            headers["Range"] = f"bytes={start}-"
            if validator:
                headers["If-Range"] = validator
        response = self.follow(client, headers)
        try:
            if response.status_code == 416 and start:
                total = _total(response.headers.get("Content-Range", ""))
                if total == start:
                    return
                self.forget()
                raise _Again(f"the server has {total} bytes where {start} were already fetched")
            if response.status_code == 206 and start:
                self.expect(_total(response.headers.get("Content-Range", "")))
                if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    self.forget()
                    raise _Again("the server sent another part of the file than asked for")
            elif response.status_code == 200:
                start = 0  # the file has changed, or the server knows no ranges: begin anew
                self.expect(_integer(response.headers.get("Content-Length")))
            else:
                self.refuse(response)
            self.keep_note(response)
            self.receive(response, start)
        finally:
            response.close()

    def resume_point(self) -> tuple[int, str | None]:
        """(bytes already here, validator they belong to); (0, None) where they cannot be trusted to be of the file wanted."""
        have = _size(self.part)
        if not have:
            return 0, None
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            same = note.get("url") == self.source and (self.sha256 is None or note.get("sha256") in (None, self.sha256))
            validator = note.get("validator")
        except (OSError, ValueError, AttributeError):
            same, validator = False, None
        too_long = self.size is not None and have > self.size
        if not same or too_long or (validator is None and self.sha256 is None):
            self.forget()
            return 0, None
        return have, validator

    def keep_note(self, response: httpx.Response) -> None:
        etag = response.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else None  # a weak validator does not promise equal bytes
        self.note.write_text(json.dumps({"url": self.source, "sha256": self.sha256, "validator": validator}), encoding="utf-8")

    def follow(self, client: httpx.Client, headers: dict[str, str]) -> httpx.Response:
        """The response behind all redirects. The token goes to the hub only, never to where it redirects; the hub's own statements are noted."""
        import httpx

        url, origin = self.url, _origin(self.url)
        token = self.token()
        for _ in range(REDIRECTS):
            own = dict(headers)
            if token and _origin(url) == origin:
                own["Authorization"] = f"Bearer {token}"
            response = client.send(client.build_request("GET", url, headers=own), stream=True)
            self.note_statements(response.headers)
            location = response.headers.get("Location")
            if response.status_code not in (301, 302, 303, 307, 308) or not location:
                return response
            response.close()
            url = urljoin(url, location)
            if urlsplit(url).scheme not in ("http", "https"):
                raise httpx.UnsupportedProtocol(f"redirected to {url}")
        raise WeightsError(f"{self.shown} redirects more than {REDIRECTS} times; look at LATENTSYNC_MIRROR and the proxy")

    def token(self) -> str | None:
        """HF_TOKEN for files of the hub (or of the mirror put in its place), and only over an encrypted or a local connection."""
        token = os.environ.get("HF_TOKEN", "").strip()
        parts = urlsplit(self.url)
        private = parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
        return token if token and private and self.source.startswith(HUB + "/") else None

    def note_statements(self, headers: httpx.Headers) -> None:
        stated = headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
        if HEX64.fullmatch(stated):  # for Git LFS files the hub's tag is the sha256 of the content
            if self.known and stated != self.sha256:
                raise WeightsError(
                    f"{self.shown} now offers another file (sha256 {stated}) than the one known here ({self.sha256}); nothing was fetched. "
                    "Update latentsync, or look at LATENTSYNC_MIRROR and HF_ENDPOINT"
                )
            self.sha256 = stated
        linked = _integer(headers.get("X-Linked-Size"))
        if linked is not None:
            self.expect(linked)

    def expect(self, total: int | None) -> None:
        """Take the server's word for the length, unless it contradicts the length already known."""
        if total is None:
            return
        if self.size is None:
            self.size = total
            self.check_space()
        elif total != self.size:
            raise WeightsError(
                f"{self.shown} has {total} bytes, not {self.size}: not the file that is expected there. Look at LATENTSYNC_MIRROR, HF_ENDPOINT and "
                "the proxy (some answer with a page of their own)"
            )

    def refuse(self, response: httpx.Response) -> None:
        code = response.status_code
        if code in (401, 403):
            raise WeightsError(
                f"{self.shown} answers {code}: it needs a token with access to it. Accept its terms on its page, set HF_TOKEN to a token of yours"
            )
        if code in (404, 410):
            raise WeightsError(f"{self.shown} answers {code}: there is no such file; look at LATENTSYNC_MIRROR and HF_ENDPOINT, or update latentsync")
        if code in (408, 425, 429) or code >= 500:
            raise _Again(f"the server answers {code}", _seconds(response.headers.get("Retry-After")))
        raise WeightsError(f"{self.shown} answers {code} {response.reason_phrase}; look at LATENTSYNC_MIRROR, HF_ENDPOINT and the proxy")

    def receive(self, response: httpx.Response, start: int) -> None:
        done = start
        with self.part.open("ab" if start else "wb") as f:
            told = 0.0
            for block in response.iter_raw():  # as they come: gathering larger blocks would lose them when the connection ends
                f.write(block)
                done += len(block)
                if self.report is not None and (time.monotonic() - told > REPORT_EVERY or done == self.size):
                    told = time.monotonic()
                    self.report(Progress(self.target.name, "downloading", done, self.size))
            f.flush()
            os.fsync(f.fileno())
        if self.size is not None and done < self.size:
            raise _Again(f"the connection ended after {done} of {self.size} bytes")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _total(content_range: str) -> int | None:
    """Length of the whole file in `bytes 5-9/10`."""
    return _integer(content_range.rpartition("/")[2])


def _seconds(retry_after: str | None) -> float | None:
    value = _integer(retry_after)  # the form with a date is rare; our own pause does for it
    return None if value is None else float(value)
