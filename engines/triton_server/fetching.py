"""How does the server fetch a picture from a web address without being turned against its own network?

Off unless an operator lists the hosts. Then: http and https on their own ports only, no redirect, no password in the
address; the name is resolved once, every address it has must be public, and the connection goes to the very address
that was checked, so that a name which changes its mind (DNS rebinding) gains nothing.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from export.errors import UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}
_CHUNK_BYTES = 1 << 16
_MAX_URL_CHARACTERS = 4096


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched.

    Raises:
        UserError: limits that allow nothing.
    """

    allowed_hosts: frozenset[str]
    """Names as they stand in the address, lower case, without port. `*.example.org` allows every name below."""
    max_bytes: int = 32 << 20
    timeout_seconds: float = 10.0
    """For the whole of one file."""

    def __post_init__(self) -> None:
        if not self.max_bytes > 0 or not self.timeout_seconds > 0:
            raise UserError(
                f"Fetching needs a size and a time above 0, found {self.max_bytes} bytes and {self.timeout_seconds} s."
            )

    def allows(self, host: str) -> bool:
        parents = host.split(".")
        wildcards = {f"*.{'.'.join(parents[i:])}" for i in range(1, len(parents))}
        return host in self.allowed_hosts or not wildcards.isdisjoint(self.allowed_hosts)


def resolve(host: str, port: int) -> list[Address]:
    """All addresses of a name, in the resolver's order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(entry[4][0]) for entry in found]


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet at large; an IPv4 address inside an IPv6 one counts as itself."""
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if mapped is not None:
        return is_public(mapped)
    return address.is_global and not address.is_multicast


class Fetcher:
    """Fetches files under a policy.

    Args:
        policy: which hosts, how much, how long.
        resolver: names to addresses.
        is_allowed_address: which addresses may be connected to.
        ports: by scheme. The last three are for tests, which have no internet.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        resolver: Callable[[str, int], Sequence[Address]] = resolve,
        is_allowed_address: Callable[[Address], bool] = is_public,
        ports: dict[str, int] | None = None,
    ) -> None:
        self._policy, self._resolver, self._is_allowed_address = policy, resolver, is_allowed_address
        self._ports = ports or _PORTS

    def fetch(self, url: str) -> bytes:
        """Get one file.

        Raises:
            UserError: the policy forbids it, it is too large or too slow, or the host does not give it.
        """
        parts = self._checked(url)
        host, port = str(parts.hostname), self._ports[parts.scheme]
        address = self._address(host, port)
        connection = _PinnedConnection(parts.scheme, host, address, port, self._policy.timeout_seconds)
        deadline = time.monotonic() + self._policy.timeout_seconds
        # A time-out of the socket is for each piece: a host that drips bytes would hold on for hours.
        timer = threading.Timer(self._policy.timeout_seconds, connection.interrupt)
        timer.daemon = True
        timer.start()
        try:
            body = self._get(connection, parts)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            if time.monotonic() < deadline:
                raise UserError(f"{host} did not send the file: {error or type(error).__name__}.") from None
        finally:
            timer.cancel()
            connection.close()
        if time.monotonic() >= deadline:  # whatever came by then is only a part
            raise UserError(
                f"{host} did not send the file within {self._policy.timeout_seconds:g} s. Send its bytes instead."
            )
        return body

    def _checked(self, url: str) -> SplitResult:
        """The parts of an address that the policy allows."""
        if len(url) > _MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
            raise UserError(
                f"A web address must be plain ASCII of at most {_MAX_URL_CHARACTERS} characters. Write the rest as %XX."
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"{url[:80]} is no web address: {error}.") from None
        problems = []
        if parts.scheme not in _PORTS:
            problems.append(f"its scheme is {parts.scheme!r}, http or https are fetched")
        if parts.username is not None or parts.password is not None:
            problems.append("it holds a user name or password")
        if port not in {None, self._ports.get(parts.scheme)}:
            problems.append(f"its port is {port}, only the scheme's own is used")
        if not parts.hostname or not self._policy.allows(parts.hostname):
            problems.append(f"this server does not fetch from {parts.hostname!r}")
        if problems:
            raise UserError(
                f"{url[:80]} is not fetched: {'; '.join(problems)}. Send the file's bytes instead."
            )
        return parts

    def _address(self, host: str, port: int) -> Address:
        try:
            addresses = self._resolver(host, port)
        except (OSError, UnicodeError, ValueError) as error:
            raise UserError(f"{host} cannot be resolved: {error}.") from None
        # One private address among public ones is an attack or a mistake: neither is followed.
        if not addresses or not all(map(self._is_allowed_address, addresses)):
            raise UserError(f"{host} is not fetched from: it has no address, or one that is not public.")
        return addresses[0]

    def _get(self, connection: "_PinnedConnection", parts: SplitResult) -> bytes:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "image/*, video/*", "Connection": "close"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise UserError(
                f"{parts.hostname} answered with status {response.status}, expected 200; redirects are not followed."
            )
        body = bytearray()
        while chunk := response.read(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._policy.max_bytes:
                raise UserError(
                    f"{parts.hostname} sends more than the {self._policy.max_bytes} bytes that are fetched."
                )
        if response.length:
            raise UserError(f"{parts.hostname} sent {len(body)} bytes and left {response.length} out.")
        return bytes(body)


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to one checked address, which speaks to it by the host's name, under TLS too."""

    def __init__(self, scheme: str, host: str, address: Address, port: int, timeout_seconds: float) -> None:
        super().__init__(host, port, timeout=timeout_seconds)
        self._scheme, self._address = scheme, address

    def connect(self) -> None:
        self.sock = socket.create_connection((str(self._address), self.port), self.timeout)
        if self._scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)

    def interrupt(self) -> None:
        """End whatever waits for the other side, from another thread."""
        with suppress(
            OSError, AttributeError
        ):  # closed, or not yet connected: the connect has its own time-out
            self.sock.shutdown(socket.SHUT_RDWR)
