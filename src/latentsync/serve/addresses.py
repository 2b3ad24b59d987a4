"""Which addresses the service may be sent to by those who use it: those of the public internet, and hosts that the operator names.

A name is resolved once, every address it has must be public, and the connection goes to one of exactly these, so that a name which means another
machine a moment later (DNS rebinding) gains nothing. A redirect is a new address, checked anew.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import httpx

from latentsync import __version__
from latentsync.serve.problems import AddressFailed, AddressRefused

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
LONGEST = 2048  # characters of an address
_TRANSITION = tuple(  # addresses of IPv6 that stand for others, which nobody has checked
    ipaddress.ip_network(n) for n in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10")
)


async def resolve(host: str, port: int) -> Sequence[str]:
    """Every address of a host, in the order in which they are to be tried."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


_SPECIAL = ipaddress.ip_network("192.0.0.0/24")  # for protocols; Python's view of it differs between its versions


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet: no private, local, shared, reserved or multicast one, in whatever spelling."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _TRANSITION):
            return False
    elif ip in _SPECIAL:
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local)


@dataclass(frozen=True)
class Place:
    """An address that may be asked: the URL as given, and where its host was found."""

    url: httpx.URL
    host: str
    addresses: tuple[str, ...]

    def shown(self) -> str:
        """For messages: without the query, which may hold somebody's token."""
        return str(self.url.copy_with(query=None, fragment=None))


@dataclass(frozen=True)
class Doorkeeper:
    """Says which addresses may be asked. `hosts`: names (or name:port) that may be asked although they are not public."""

    hosts: Collection[str] = ()
    resolve: Resolve = resolve

    def read(self, url: str) -> tuple[httpx.URL, str]:
        """(the address, its host) as far as it can be judged without asking anybody. Raises AddressRefused."""
        if len(url) > LONGEST or not url.isascii() or not url.isprintable() or " " in url:
            raise AddressRefused(f"the address {url[:60]!r}... is longer than {LONGEST} characters, or holds some that no address has") from None
        try:
            parsed = httpx.URL(url)
            host = parsed.raw_host.decode("ascii").lower().rstrip(".")
        except (httpx.InvalidURL, ValueError) as e:
            raise AddressRefused(f"{url!r} is not an address: {e}") from None
        if parsed.scheme not in ("http", "https") or not host:
            raise AddressRefused(f"{url!r} is not an address that begins with https:// or http://")
        if parsed.userinfo:
            raise AddressRefused("an address with a user name or a password in it is not asked; use a signed link instead")
        return parsed, host

    async def check(self, url: str) -> Place:
        """The place behind an address. Raises AddressRefused for one that is not asked, AddressFailed for a host that is not found."""
        parsed, host = self.read(url)
        port = parsed.port or {"https": 443, "http": 80}[parsed.scheme]
        if port > 65535:
            raise AddressRefused(f"port {port} does not exist")
        named = host in self.hosts or f"{host}:{port}" in self.hosts
        if not named and port not in (80, 443) and port < 1024:
            raise AddressRefused(f"port {port} is not asked: it belongs to other services than the web; ports 80, 443 and those from 1024 are")
        try:
            found = tuple(await asyncio.wait_for(self.resolve(host, port), 10))
        except (OSError, UnicodeError, asyncio.TimeoutError):
            raise AddressFailed(f"the host {host} was not found; look at its spelling") from None
        if not found:
            raise AddressFailed(f"the host {host} has no address")
        if not named and not all(is_public(address) for address in found):
            raise AddressRefused(f"{host} is not on the public internet, and this service asks only what is; upload the file instead")
        return Place(parsed, host, found)


def client(seconds: float) -> httpx.AsyncClient:
    """A client that goes where it is told and nowhere else: no redirects, no proxies of the environment. `seconds`: the longest silence."""
    headers = {"User-Agent": f"latentsync/{__version__}", "Accept-Encoding": "identity"}
    return httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=httpx.Timeout(seconds, connect=min(seconds, 10.0)), headers=headers)


async def ask(
    asker: httpx.AsyncClient, method: str, place: Place, *, content: bytes | None = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    """The response, unread, from one of the addresses that were checked. TLS is checked against the host's name. Raises httpx.TransportError."""
    netloc = place.url.netloc.decode("ascii")
    for i, address in enumerate(place.addresses[:4]):
        request = asker.build_request(
            method,
            place.url.copy_with(host=address.partition("%")[0], fragment=None),
            content=content,
            headers={**(headers or {}), "Host": netloc},
            extensions={"sni_hostname": place.host},
        )
        try:
            return await asker.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if i + 1 == len(place.addresses[:4]):
                raise
    raise AssertionError("a place has an address")
