import ipaddress
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from engines.serving.media.fetching import Fetcher, FetchPolicy, host_problem, is_public
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


@contextmanager
def dripping(head, piece=b"x", pause_seconds=0.02):
    """A host that goes on until the other side hangs up; it never gives up by itself."""
    hung_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(head)
                    while True:
                        connection.sendall(piece)
                        time.sleep(pause_seconds)
                except OSError:
                    hung_up.set()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        assert hung_up.wait(10), "the connection was left open"
        thread.join(5)


DRIPS = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "a length and close": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nConnection: close\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\n\r\n",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "an endless line of status": b"",
    "an endless header": b"HTTP/1.1 200 OK\r\nX: ",
    "endless headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "an endless chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFF\r\n",
    "chunks of one byte": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "an endless size of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("kind", DRIPS)
def test_the_deadline_holds_against_a_host_that_goes_on(kind):
    head, piece = DRIPS[kind] if isinstance(DRIPS[kind], tuple) else (DRIPS[kind], b"x")
    policy = FetchPolicy(frozenset({HOST}), max_bytes=1 << 20, timeout_seconds=0.5)
    with dripping(head, piece) as port:
        started = time.monotonic()
        message = refusal(fetcher(port, policy), f"http://{HOST}/a")
        elapsed = time.monotonic() - started
    assert "within 0.5 s" in message or "did not send the file" in message
    assert elapsed < 1.0


def test_the_deadline_of_the_request_holds_where_it_is_sooner():
    with dripping(b"HTTP/1.1 200 OK\r\n\r\n") as port:
        started = time.monotonic()
        with pytest.raises(UserError, match=r"within 0\.3 s"):
            fetcher(port).fetch(f"http://{HOST}/a", deadline=started + 0.3)
        assert time.monotonic() - started < 0.8


def test_a_client_that_leaves_ends_the_fetch():
    with dripping(
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nConnection: close\r\n\r\n", b"x", 0.5
    ) as port:
        started = time.monotonic()
        with pytest.raises(UserError, match="the client left"):
            fetcher(port).fetch(f"http://{HOST}/a", is_cancelled=lambda: time.monotonic() > started + 0.2)
        assert time.monotonic() - started < 0.8


def test_a_host_that_never_takes_up_is_given_up():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        policy = FetchPolicy(frozenset({HOST}), timeout_seconds=0.5)
        started = time.monotonic()
        assert "within 0.5 s" in refusal(fetcher(listener.getsockname()[1], policy), f"http://{HOST}/a")
        assert time.monotonic() - started < 1.0


def test_a_resolver_that_is_slow_is_given_up_and_many_of_them_are_bounded():
    over = threading.Event()
    asked = []

    def resolver(host, _):
        asked.append(host)
        over.wait(10)
        return [LOOPBACK]

    slow = Fetcher(FetchPolicy(frozenset({HOST}), timeout_seconds=0.2), resolver=resolver)
    slow._lookups = threading.BoundedSemaphore(2)
    started = time.monotonic()
    for _ in range(4):
        assert "within 0.2 s" in refusal(slow, f"http://{HOST}/a")
    assert time.monotonic() - started < 1.5
    assert len(asked) == 2
    over.set()


@pytest.mark.parametrize(
    "chunks",
    [b"-1\r\n", b"-5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"\r\n", b"1" * 70000, b"FFFFFFFFFFFFFFFFFF\r\nx"],
)
def test_a_size_of_a_chunk_that_is_none_is_the_hosts_fault(chunks):
    with answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks) as (port, _):
        assert "did not send the file" in refusal(fetcher(port), f"http://{HOST}/a")


@pytest.mark.parametrize(
    "address",
    [
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "::7f00:1", "::808:808"),
        *("::ffff:0:a00:1", "fec0::1", "3fff::1", "5f00::1", "192.0.0.192", "168.63.129.16"),
        *("::ffff:168.63.129.16", "2002:a83f:8110::1", "64:ff9b::a83f:8110"),
    ],
)
def test_addresses_of_special_use_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


def test_a_public_address_behind_nat64_is_public():
    assert is_public(ipaddress.ip_address("64:ff9b::5db8:d822"))


@pytest.mark.parametrize(
    "host", ["a.example", "*.cdn.example.org", "10.1.2.3", "xn--bcher-kva.example", "localhost"]
)
def test_a_host_name_has_no_problem(host):
    assert host_problem(host) is None


@pytest.mark.parametrize(
    ("host", "says"),
    [
        *(
            (host, "is no host name")
            for host in ("http://x", "*", "host:8080", "host/", "", "a..b", ".a", "a b")
        ),
        *(
            (host, "is no host name")
            for host in ("*.*.a", "a.*", "b\u00fccher.example", "a" * 300, "-a", "[::1]")
        ),
        ("Host.example", "lower case"),
        (7, "is no text"),
    ],
)
def test_what_can_match_no_host_has_a_problem(host, says):
    assert says in str(host_problem(host))
