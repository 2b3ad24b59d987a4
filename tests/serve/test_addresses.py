"""The service asks nobody but the public internet, whatever an address is made to look like."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentsync.jobs.errors import DiskFull
from latentsync.serve.addresses import Doorkeeper, is_public
from latentsync.serve.fetch import fetch
from latentsync.serve.problems import AddressFailed, AddressRefused, TooLarge

PUBLIC = ("8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8")
INSIDE = (
    "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.8",
    "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe",
    "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::1", "2001:0:1::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1",
    "ff02::1", "2001:db8::1", "", "localhost",
)  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_that_are_not(address: str) -> None:
    assert not is_public(address)


def names(**known: Sequence[str]) -> Callable[[str, int], Any]:
    """A resolver that knows these names: dots are written as underscores. Numbers it knows too."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host.replace(".", "").isdigit():
            return [host]
        if host.replace(".", "_") not in known:
            raise OSError("unknown")
        return known[host.replace(".", "_")]

    return resolve


def check(url: str, **keeper: Any) -> Any:
    return asyncio.run(Doorkeeper(**keeper).check(url))


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://0/", "http://[::1]/", "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]:8000/", "http://127.0.0.1./", "http://169.254.169.254/latest/meta-data/", "http://localhost/", "https://LOCALHOST./x",
    ],
)  # fmt: skip
def test_spellings_of_this_machine_are_seen_through(url: str) -> None:
    """By this system's own resolver."""
    with pytest.raises((AddressRefused, AddressFailed)):
        check(url)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/x", "file:///etc/passwd", "gopher://a.example/", "//a.example/", "http://", "http:///x", "javascript:alert(1)",
        "http://user:word@a.example/", "http://user@a.example/", "http://a.example:22/", "http://a.example:25/", "http://a.example:99999/",
        "http://a.example/\r\nX: y", "http://a.example/ b", "http://ä.example/", "http://a.example/" + "x" * 3000, "http://a.example\\@127.0.0.1/",
        "http://127.0.0.1#@a.example/", "http://127.0.0.1:80\\@a.example/",
    ],
)  # fmt: skip
def test_addresses_that_are_none_or_not_asked(url: str) -> None:
    with pytest.raises((AddressRefused, AddressFailed)):
        check(url, resolve=names(a_example=["8.8.8.8"]))


def test_every_address_of_a_name_must_be_public() -> None:
    assert check("https://a.example/x?y", resolve=names(a_example=["8.8.8.8", "2606:4700::1"])).addresses == ("8.8.8.8", "2606:4700::1")
    for inside in ("10.0.0.1", "::1", "::ffff:192.168.0.1"):
        with pytest.raises(AddressRefused, match="public internet"):
            check("https://a.example/", resolve=names(a_example=["8.8.8.8", inside]))
    with pytest.raises(AddressFailed, match="not found"):
        check("https://b.example/", resolve=names())


def test_hosts_that_the_operator_names() -> None:
    keeper = {"hosts": {"nas", "box:8080"}, "resolve": names(nas=["10.0.0.9"], box=["10.0.0.8"])}
    assert check("http://NAS:445/x", **keeper).addresses == ("10.0.0.9",)
    assert check("http://box:8080/x", **keeper).host == "box"
    with pytest.raises(AddressRefused):
        check("http://box:9090/x", **keeper)


class Site(ThreadingHTTPServer):
    """A web site of this test: paths and what they answer; what was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.server.pages[self.path](self)

    def log_message(self, *_: object) -> None:
        pass


def page(body: bytes, status: int = 200, stated: int | None = None, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def write(h: BaseHTTPRequestHandler) -> None:
        h.send_response(status)
        for k, v in headers.items():
            h.send_header(k.replace("_", "-"), v)
        if stated != -1:
            h.send_header("Content-Length", str(len(body) if stated is None else stated))
        h.end_headers()
        h.wfile.write(body)

    return write


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(site: Site, path: str, folder: Path, *, host: str = "films.example", most: int = 1000, **more: Any) -> Path:
    """Fetch from the site, under a name that only this resolver knows."""
    port = site.server_address[1]
    keeper = Doorkeeper(hosts={f"films.example:{port}"}, resolve=names(films_example=["127.0.0.1"], inner_example=["127.0.0.1"]))
    settings: dict[str, Any] = {"most": most, "check": lambda: None, "seconds": 10.0, **more}
    return asyncio.run(fetch(f"http://{host}:{port}{path}", lambda name: folder / f"got{Path(name).suffix}", keeper, **settings))


def test_the_connection_goes_to_the_address_that_was_checked(site: Site, tmp_path: Path) -> None:
    """The name exists for the resolver only: a second look by anybody else would fail."""
    site.pages["/a%20b.mp4?sign=1"] = page(b"film", Content_Type="video/mp4")
    found = get(site, "/a%20b.mp4?sign=1", tmp_path)
    assert (found.name, found.read_bytes()) == ("got.mp4", b"film")
    asked = site.asked[0][1]
    assert asked["host"] == f"films.example:{site.server_address[1]}"
    assert not {"cookie", "authorization"} & set(asked)


def test_a_name_that_changes_its_meaning_gains_nothing(tmp_path: Path) -> None:
    """DNS rebinding: public when it is checked, this machine a moment later. It is resolved once, and that is where the connection goes."""
    answers = iter([["203.0.113.5", "8.8.8.8"], ["127.0.0.1"]])

    async def turning(host: str, port: int) -> Sequence[str]:
        return next(answers)

    with pytest.raises(AddressRefused):
        asyncio.run(fetch("http://a.example/x", lambda name: tmp_path / "x", Doorkeeper(resolve=turning), most=10, check=lambda: None, seconds=5.0))
    assert next(answers) == ["127.0.0.1"], "it was resolved once"


def test_the_type_names_the_file_where_the_address_does_not(site: Site, tmp_path: Path) -> None:
    site.pages["/download"] = page(b"film", Content_Type="video/quicktime; x=y")
    assert get(site, "/download", tmp_path).name == "got.mov"


@pytest.mark.parametrize(
    "target", ["http://inner.example:{port}/secret", "http://127.0.0.1:{port}/secret", "http://169.254.169.254/", "file:///etc/passwd"]
)
def test_redirects_are_checked_anew(site: Site, tmp_path: Path, target: str) -> None:
    site.pages["/a"] = page(b"", 302, Location=target.format(port=site.server_address[1]))
    site.pages["/secret"] = page(b"secret")
    with pytest.raises(AddressRefused):
        get(site, "/a", tmp_path)
    assert [path for path, _ in site.asked] == ["/a"]


def test_good_redirects_are_followed_but_not_for_ever(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/a": page(b"", 302, Location="/b"), "/b": page(b"", 307, Location="c.wav"), "/c.wav": page(b"sound")}
    assert get(site, "/a", tmp_path).read_bytes() == b"sound"
    site.pages["/round"] = page(b"", 302, Location="/round")
    with pytest.raises(AddressFailed, match="redirects"):
        get(site, "/round", tmp_path)


def test_sizes_are_counted_whatever_is_said(site: Site, tmp_path: Path) -> None:
    site.pages["/said"] = page(b"x", stated=5000)
    site.pages["/unsaid"] = page(b"x" * 5000, stated=-1)
    for path in ("/said", "/unsaid"):
        with pytest.raises(TooLarge, match="at most"):
            get(site, path, tmp_path)
        (tmp_path / "got").unlink(missing_ok=True)
    assert get(site, "/unsaid", tmp_path, most=0).stat().st_size == 5000


def test_what_is_no_file(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/gone": page(b"", 404), "/zip": page(b"x", Content_Encoding="gzip"), "/empty": page(b""), "/torn": page(b"x", stated=10)}
    for path, says in (("/gone", "404"), ("/zip", "gzip"), ("/empty", "empty"), ("/torn", "cannot be fetched")):
        with pytest.raises(AddressFailed, match=says):
            get(site, path, tmp_path)
        (tmp_path / "got").unlink(missing_ok=True)


def test_a_site_that_dawdles_is_left(site: Site, tmp_path: Path) -> None:
    def drip(h: BaseHTTPRequestHandler) -> None:
        page(b"", stated=1000)(h)
        for _ in range(100):
            try:
                h.wfile.write(b"x")
                h.wfile.flush()
            except OSError:
                return
            time.sleep(0.02)

    site.pages["/drip?token=secret"] = drip
    with pytest.raises(AddressFailed, match="not there within") as e:
        get(site, "/drip?token=secret", tmp_path, seconds=0.3)
    assert "secret" not in str(e.value)


def test_a_full_disk_stops_it(site: Site, tmp_path: Path) -> None:
    def full() -> None:
        raise DiskFull("full")

    site.pages["/a"] = page(b"film")
    with pytest.raises(DiskFull):
        get(site, "/a", tmp_path, check=full)


def test_certificates_are_checked_against_the_name_though_the_connection_goes_to_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = shutil.which("openssl")
    if maker is None:
        pytest.skip("no openssl to make a certificate with")
    words = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=films.example",
        "-addext",
        "subjectAltName=DNS:films.example",
    ]
    subprocess.run([maker, *words, "-keyout", tmp_path / "key", "-out", tmp_path / "cert"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with Site() as site:
        site.socket = context.wrap_socket(site.socket, server_side=True)
        site.pages["/a"] = page(b"film")
        threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

        def got(host: str) -> bytes:
            keeper = Doorkeeper(hosts={host}, resolve=names(films_example=["127.0.0.1"], other_example=["127.0.0.1"]))
            url, target = f"https://{host}:{site.server_address[1]}/a", tmp_path / "got"
            target.unlink(missing_ok=True)
            return asyncio.run(fetch(url, lambda name: target, keeper, most=100, check=lambda: None, seconds=10.0)).read_bytes()

        with pytest.raises(AddressFailed, match="certificate"):
            got("films.example")
        trusting = ssl.create_default_context(cafile=tmp_path / "cert")
        monkeypatch.setattr("latentsync.serve.fetch.client", lambda seconds: httpx.AsyncClient(verify=trusting, trust_env=False))
        assert got("films.example") == b"film"
        with pytest.raises(AddressFailed, match="certificate"):
            got("other.example")
        site.shutdown()
