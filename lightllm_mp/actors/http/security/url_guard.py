"""Decides which addresses images may be fetched from: public addresses, and hosts that the operator allows.

A name is resolved once per connection, all its addresses are checked, and the connection goes to one of them: a name
that resolves differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address as IPv4
from ipaddress import IPv6Address as IPv6

from aiohttp.abc import AbstractResolver, ResolveResult

from lightllm_mp.actors.http.security.name_lookups import NameLookups
from lightllm_mp.errors import InvalidRequest

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
"""RFC 8215: only for use inside a network."""
COMPATIBLE = ipaddress.IPv6Network("::/96")


class ForbiddenAddress(InvalidRequest):
    """The address of an image's host is not public."""

    code = "image_address_forbidden"


def is_public(address: IPv4 | IPv6) -> bool:
    """Whether an address is neither private, loopback, link-local, multicast, reserved nor unspecified. An IPv6 address
    that embeds an IPv4 one (mapped, NAT64, 6to4, Teredo) is judged by that one."""
    if isinstance(address, IPv6):
        if address in NAT64_LOCAL or address in COMPATIBLE or address.is_site_local or address.scope_id:
            return False
        if (inner := _embedded(address)) is not None:
            return is_public(inner)
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: IPv6) -> IPv4 | None:
    """The IPv4 address that packets to `address` reach, if it embeds one."""
    if address in NAT64:
        return IPv4(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


class UrlGuard:
    """Checks hosts and addresses. `allowed`: hosts, spelled as in URLs, that may have any address."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(map(_plain, allowed))

    def allows(self, host: str) -> bool:
        return _plain(host) in self._allowed

    def check_literal(self, host: str) -> None:
        """Check a host that is an address: it is not resolved. Raises ForbiddenAddress."""
        try:
            address = ipaddress.ip_address(_plain(host))
        except ValueError:
            # Sockets and aiohttp take 127.1 and 2130706433 as addresses; aiohttp would not call the resolver.
            if not self.allows(host) and (":" in host or host.replace(".", "").isdigit()):
                raise ForbiddenAddress(
                    "an image's URL has an address in an old form", param="multimodal_params"
                ) from None
            return
        self.check(host, [address])

    def check(self, host: str, addresses: Iterable[IPv4 | IPv6]) -> None:
        """All addresses must be public, because aiohttp picks one. Raises ForbiddenAddress."""
        if not self.allows(host) and not all(map(is_public, addresses)):
            raise ForbiddenAddress("the address of an image's URL is not public", param="multimodal_params")


class PinnedResolver(AbstractResolver):
    """The system's resolver for one tenant, with every answer checked. aiohttp connects to exactly what it returns."""

    def __init__(self, guard: UrlGuard, lookups: NameLookups, tenant: bytes) -> None:
        self._guard, self._lookups, self._tenant = guard, lookups, tenant

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._lookups.find(self._tenant, host, port, family)
        addresses = [entry[4] for entry in found]
        self._guard.check(host, [ipaddress.ip_address(address[0]) for address in addresses])
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=entry[0],
                proto=entry[2],
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for entry, address in zip(found, addresses, strict=True)
        ]

    async def close(self) -> None:
        """There is nothing to close."""


def _plain(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()
