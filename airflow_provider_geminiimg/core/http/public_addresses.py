"""Resolves hosts, and tells public from private IP addresses.

What must stay true: an address that is not known to be public counts as private, and so does an IPv6 address that
embeds a private IPv4 address; a name server that does not respond blocks only other look-ups.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

_LOOK_UPS = 32  # simultaneous; one that gets no response blocks its thread until the resolver's timeout
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_AZURE = ipaddress.ip_address("168.63.129.16")  # Azure's host service: in the public range, but local to each machine
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_RESOLVERS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor] = weakref.WeakKeyDictionary()


async def look_up(name: str, port: int) -> list[str]:
    """The IP addresses of a host, in the resolver's order.

    :raises OSError: the host cannot be resolved.
    """
    with contextlib.suppress(ValueError):  # no name, so that nobody has to be asked
        return [str(ipaddress.ip_address(name))]
    found = await asyncio.get_running_loop().run_in_executor(
        _resolvers(), lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _resolvers() -> ThreadPoolExecutor:
    """Threads for look-ups alone, one pool per event loop: a look-up that hangs must not delay writing records."""
    loop = asyncio.get_running_loop()
    if loop not in _RESOLVERS:
        _RESOLVERS[loop] = ThreadPoolExecutor(_LOOK_UPS, thread_name_prefix="geminiimg-names")
    return _RESOLVERS[loop]


def is_public(address: str) -> bool:
    """Whether an IP address, and an IPv4 address embedded in it, is public."""
    ip: _Address = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return _is_public_v4(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return _is_public_v4(inner)
        return ip in _GLOBAL_V6 and ip.is_global and ip.scope_id is None
    return _is_public_v4(ip)


def _is_public_v4(ip: ipaddress.IPv4Address) -> bool:
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and ip != _AZURE
