"""Fetches a picture from a web address without being turned against the server's own network.

Off unless an operator lists the hosts. Then: http and https on their own ports only, no redirect, no password in the
address; the name is resolved once, every address it has must be public, and the connection goes to the very address
that was checked, so that a name which changes its mind (DNS rebinding) gains nothing. One deadline holds for all of
it: the look-up of the name, the handshake, and every byte of a host that drips.
"""

import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from export.errors import UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}
_CHUNK_BYTES = 1 << 16
_MAX_URL_CHARACTERS = 4096
_MAX_LOOKUPS = 32
"""At the same time. A look-up cannot be ended, so one that outlives its request still counts."""
_POLL_SECONDS = 0.1
"""How soon a client that left is noticed while a host sends nothing."""
_HOST = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_LIKE_THIS_NETWORK = tuple(
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b:1::/48",  # NAT64 of a private network
        "::/96",  # an IPv4 address, as it once was written
        "::ffff:0:0:0/96",  # an IPv4 address behind a translator
        "fec0::/10",  # site-local, as it once was
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata at 192.0.0.192
        "168.63.129.16/32",  # Azure's own services
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


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


def host_problem(host: object) -> str | None:
    """Why a name can match no address's host; None for one that can."""
    if not isinstance(host, str):
        return f"{host!r} is no text"
    if len(host) <= 253 and _HOST.fullmatch(host):
        return None
    if host != host.lower():
        return f"{host!r} must be written in lower case"
    return f"{host!r} is no host name: write it without scheme, port or path, and *.example.org for all names below one"


def resolve(host: str, port: int) -> list[Address]:
    """All addresses of a name, in the resolver's order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(entry[4][0]) for entry in found]


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet at large; an IPv4 address inside an IPv6 one counts as itself."""
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if inner is None and address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(inner)
    if any(address in network for network in _LIKE_THIS_NETWORK):
        return False
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
        self._lookups = threading.BoundedSemaphore(_MAX_LOOKUPS)

    def fetch(
        self, url: str, *, deadline: float | None = None, is_cancelled: Callable[[], bool] | None = None
    ) -> bytes:
        """Get one file.

        Args:
            url: of the file.
            deadline: of the request that asks for it, on the monotonic clock; the policy's own holds as well.
            is_cancelled: whether nobody waits for the file any longer.

        Raises:
            UserError: the policy forbids it, it is too large or too slow, or the host does not give it.
        """
        parts = self._checked(url)
        started = time.monotonic()
        end = min(started + self._policy.timeout_seconds, deadline if deadline is not None else float("inf"))
        wait = _Wait(end, is_cancelled or _never)
        host, port = str(parts.hostname), self._ports[parts.scheme]
        try:
            address = self._address(host, port, wait)
            connection = _PinnedConnection(parts.scheme, host, address, port, wait)
            try:
                body = self._get(connection, parts)
            finally:
                connection.hang_up()
            wait.check()
        except _GivenUpError as error:
            seconds = max(end - started, 0.0)
            raise UserError(
                f"{host} did not send the file within {seconds:.3g} s. Send its bytes instead."
                if not error.is_cancelled
                else f"{host} is no longer asked for the file: the client left."
            ) from None
        return body

    def _checked(self, url: str) -> SplitResult:
        """The parts of an address that the policy allows."""
        if len(url) > _MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
            raise UserError(
                f"A web address must be plain ASCII of at most {_MAX_URL_CHARACTERS} characters.",
                "Write the rest as %XX.",
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
                f"{url[:80]} is not fetched: {'; '.join(problems)}.", "Send the file's bytes instead."
            )
        return parts

    def _address(self, host: str, port: int, wait: "_Wait") -> Address:
        try:
            addresses = self._look_up(host, port, wait)
        except (OSError, UnicodeError, ValueError) as error:
            raise UserError(f"{host} cannot be resolved: {error}.") from None
        # One private address among public ones is an attack or a mistake: neither is followed.
        if not addresses or not all(map(self._is_allowed_address, addresses)):
            raise UserError(f"{host} is not fetched from: it has no address, or one that is not public.")
        return addresses[0]

    def _look_up(self, host: str, port: int, wait: "_Wait") -> Sequence[Address]:
        """Ask the resolver in a thread of its own: nothing can end its call, so it may outlive the wait for it."""
        if not self._lookups.acquire(timeout=wait.seconds_left()):
            raise _GivenUpError
        answers: queue.SimpleQueue[Sequence[Address] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._resolver(host, port))
            except Exception as error:  # noqa: BLE001 - raised again by the thread that waits
                answers.put(error)
            finally:
                self._lookups.release()

        threading.Thread(target=ask, name="name look-up", daemon=True).start()
        while True:
            try:
                answer = answers.get(timeout=wait.next_seconds())
            except queue.Empty:
                continue
            if isinstance(answer, Exception):
                raise answer
            return answer

    def _get(self, connection: "_PinnedConnection", parts: SplitResult) -> bytes:
        try:
            return self._body(connection, parts)
        except (UserError, _GivenUpError):
            raise
        except Exception as error:  # noqa: BLE001 - http.client raises all sorts over what a host may send
            summary = str(error) or type(error).__name__
            raise UserError(f"{parts.hostname} did not send the file: {summary:.200}.") from None

    def _body(self, connection: "_PinnedConnection", parts: SplitResult) -> bytes:
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


def _never() -> bool:
    return False


class _GivenUpError(Exception):
    """The time is over, or the client left."""

    def __init__(self, *, is_cancelled: bool = False) -> None:
        super().__init__()
        self.is_cancelled = is_cancelled


@dataclass(frozen=True)
class _Wait:
    """How long anything may still be waited for."""

    end: float
    is_cancelled: Callable[[], bool]

    def check(self) -> None:
        if self.is_cancelled():
            raise _GivenUpError(is_cancelled=True)
        if time.monotonic() >= self.end:
            raise _GivenUpError

    def seconds_left(self) -> float:
        self.check()
        return max(self.end - time.monotonic(), 0.001)

    def next_seconds(self) -> float:
        """Until the next look at the clock and the client."""
        return min(self.seconds_left(), _POLL_SECONDS)


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to one checked address, which speaks to it by the host's name, under TLS too."""

    def __init__(self, scheme: str, host: str, address: Address, port: int, wait: _Wait) -> None:
        super().__init__(host, port)
        self._scheme, self._address, self._wait = scheme, address, wait
        self._connected: socket.socket | None = None

    def connect(self) -> None:
        try:
            # Each of these calls keeps to its time-out as a whole.
            self._connected = socket.create_connection(
                (str(self._address), self.port), self._wait.seconds_left()
            )
            if self._scheme == "https":
                self._connected.settimeout(self._wait.seconds_left())
                context = ssl.create_default_context()
                self._connected = context.wrap_socket(self._connected, server_hostname=self.host)
        except TimeoutError:
            self._wait.check()
            raise
        self.sock: Any = _BoundedSocket(self._connected, self._wait)

    def hang_up(self) -> None:
        """`close` is what `http.client` calls while an answer is still to be read."""
        self.close()
        if self._connected is not None:
            self._connected.close()


class _BoundedSocket:
    """What `http.client` needs of a socket, whose own time-out would begin anew with every byte."""

    def __init__(self, connected: socket.socket, wait: _Wait) -> None:
        self._connected, self._wait = connected, wait

    def sendall(self, data: bytes) -> None:
        self._connected.settimeout(self._wait.seconds_left())
        self._connected.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_BoundedReader(self._connected, self._wait))

    def close(self) -> None:
        """Nothing: the answer is read after `http.client` has let go of the connection."""


class _BoundedReader(io.RawIOBase):
    def __init__(self, connected: socket.socket, wait: _Wait) -> None:
        super().__init__()
        self._connected, self._wait = connected, wait

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._connected.settimeout(self._wait.next_seconds())
            try:
                return self._connected.recv_into(buffer)
            except TimeoutError:
                continue
