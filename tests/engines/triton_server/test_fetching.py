import ipaddress
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from engines.triton_server.fetching import Fetcher, FetchPolicy, is_public
from export.errors import UserError

HOST = "pictures.example.org"
POLICY = FetchPolicy(frozenset({HOST, "*.cdn.example.org"}), max_bytes=1000, timeout_seconds=5.0)
LOOPBACK = ipaddress.ip_address("127.0.0.1")


@contextmanager
def answering(*pieces, pause_seconds=0.0):
    """A host on loopback that answers one request with these bytes; gives its port and what it was asked."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def serve():
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                try:
                    for piece in pieces:
                        connection.sendall(piece)
                        time.sleep(pause_seconds)
                except OSError:
                    pass  # the other side has had enough

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked
        thread.join(5)


def fetcher(port, policy=POLICY, resolved=None):
    """One that may connect to loopback."""
    calls = [] if resolved is None else resolved

    def resolver(host, _port):
        calls.append(host)
        return [LOOPBACK]

    return Fetcher(policy, resolver=resolver, is_allowed_address=lambda _: True, ports={"http": port})


def refusal(a_fetcher, url):
    with pytest.raises(UserError) as caught:
        a_fetcher.fetch(url)
    return str(caught.value)


def test_a_file_comes_from_the_address_that_was_checked_under_the_hosts_own_name():
    resolved: list[str] = []
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes") as (port, asked):
        assert fetcher(port, resolved=resolved).fetch(f"http://{HOST}/a%20b.png?size=1") == b"bytes"
    assert asked[0].startswith(b"GET /a%20b.png?size=1 HTTP/1.1\r\n")
    assert f"Host: {HOST}:{port}\r\n".encode() in asked[0]
    assert resolved == [HOST]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://pictures.example.org/a", "http or https"),
        ("http://other.example.org/a", "does not fetch from"),
        ("http://example.org/a", "does not fetch from"),
        ("http://cdn.example.org/a", "does not fetch from"),
        ("http://pictures.example.org.evil.com/a", "does not fetch from"),
        ("http://user:word@pictures.example.org/a", "user name or password"),
        ("http://pictures.example.org:8000/a", "its port is 8000"),
        ("http://pictures.example.org:x/a", "no web address"),
        ("http://pictures.example.org/a b", "plain ASCII"),
        ("http://pictures.example.org/a\r\nX: y", "plain ASCII"),
        ("http://pictures.example.org/" + "a" * 5000, "at most 4096"),
        ("http:///a", "does not fetch from None"),
    ],
)
def test_an_address_outside_of_the_policy_is_refused_without_asking_anyone(url, says):
    def resolver(host, port):
        raise AssertionError("the resolver was asked")

    assert says in refusal(Fetcher(POLICY, resolver=resolver), url)


def test_a_wildcard_allows_names_below_and_nothing_else():
    assert POLICY.allows("a.cdn.example.org")
    assert POLICY.allows("a.b.cdn.example.org")
    assert not POLICY.allows("cdn.example.org")
    assert not POLICY.allows("evilcdn.example.org")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
        *(
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "fc00::1",
            "::ffff:10.0.0.1",
            "2002:0a00:0001::1",
        ),
        *("ff02::1", "::"),
    ],
)
def test_addresses_that_are_not_of_the_internet_are_refused_after_resolution(address):
    found = ipaddress.ip_address(address)
    assert not is_public(found)
    assert "not public" in refusal(Fetcher(POLICY, resolver=lambda *_: [found]), f"http://{HOST}/a")


def test_public_addresses_are_public():
    assert is_public(ipaddress.ip_address("93.184.216.34"))
    assert is_public(ipaddress.ip_address("2606:2800:220:1:248:1893:25c8:1946"))


def test_one_private_address_among_public_ones_refuses_the_host():
    addresses = [ipaddress.ip_address("93.184.216.34"), LOOPBACK]
    assert "not public" in refusal(Fetcher(POLICY, resolver=lambda *_: addresses), f"http://{HOST}/a")


def test_a_name_that_does_not_resolve_is_a_clear_refusal():
    def resolver(*_):
        raise socket.gaierror("no such name")

    assert "cannot be resolved" in refusal(Fetcher(POLICY, resolver=resolver), f"http://{HOST}/a")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", "status 302"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1001), "more than the 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "did not send|left 5 out"),
        (b"nonsense\r\n\r\n", "did not send the file"),
        (b"", "did not send the file"),
    ],
)
def test_what_is_no_whole_file_is_refused(answer, says):
    with answering(answer) as (port, _):
        message = refusal(fetcher(port), f"http://{HOST}/a")
    assert any(word in message for word in says.split("|"))


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_host_that_drips_is_given_up_when_the_time_is_over(head):
    policy = FetchPolicy(frozenset({HOST}), timeout_seconds=0.5)
    with answering(head, *[b"x"] * 40, pause_seconds=0.05) as (port, _):
        assert "within 0.5 s" in refusal(fetcher(port, policy), f"http://{HOST}/a")


def test_a_policy_that_allows_nothing_is_refused():
    with pytest.raises(UserError, match="size and a time"):
        FetchPolicy(frozenset({HOST}), max_bytes=0)
