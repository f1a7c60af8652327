"""Looks up the addresses of a host, and says which of them are the public internet's.

What must stay true: an address that is not known to be public counts as private, and so does one that only wraps up a
private one; a name server that does not answer holds up look-ups alone.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

_LOOK_UPS = 32  # at once; a name server that does not answer holds each for as long as the resolver waits
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_AZURE = ipaddress.ip_address("168.63.129.16")  # a public address by its number, and each machine's own host there
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_RESOLVERS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor] = weakref.WeakKeyDictionary()


async def look_up(name: str, port: int) -> list[str]:
    """The addresses of a host, in the resolver's order.

    :raises OSError: there are none.
    """
    found = await asyncio.get_running_loop().run_in_executor(
        _resolvers(), lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _resolvers() -> ThreadPoolExecutor:
    """Threads of the running loop for look-ups alone: those that hang must not keep records from being written."""
    loop = asyncio.get_running_loop()
    if loop not in _RESOLVERS:
        _RESOLVERS[loop] = ThreadPoolExecutor(_LOOK_UPS, thread_name_prefix="geminiimg-names")
    return _RESOLVERS[loop]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and so is every address that is wrapped up in it."""
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
