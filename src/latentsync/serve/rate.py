"""How often one visitor may ask: a bucket of tokens each, which fills steadily."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MOST = 20_000  # visitors remembered; the one seen longest ago is forgotten, who then begins with a full bucket


class Buckets:
    """`rate` requests a second each, after `burst` at once. A rate of 0 counts nothing."""

    def __init__(self, rate: float, burst: int, *, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._most, self._clock = rate, float(max(1, burst)), most, clock
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()  # visitor -> (tokens, when they were counted)

    def __len__(self) -> int:
        return len(self._held)

    def take(self, visitor: str) -> float:
        """Take a token: 0 where there is one, or else the seconds until there is. Who asks in vain loses nothing."""
        if self._rate <= 0:
            return 0.0
        now = self._clock()
        tokens, then = self._held.pop(visitor, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._held[visitor] = (tokens if wait else tokens - 1, now)
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return wait


def visitor(address: str | None) -> str:
    """Under which name an address is counted: IPv6 by its /64, which one household has to itself."""
    try:
        ip = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ipaddress.ip_network((ip, 64), strict=False))
        return str(ip.ipv4_mapped)
    return str(ip)
