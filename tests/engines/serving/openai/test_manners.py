"""How the server meets what clients and people do that is not in the manual: paths, methods, headers, other origins."""

import json
import urllib.error
import urllib.request

import pytest

from engines.serving.openai.http.origins import checked_origin
from export.errors import UserError
from tests.engines.serving.openai.served import HELLO, MODEL, ask
from tests.support.serve import running_serve

KEY = "0123456789abcdef-manners"
ORIGIN = "https://chat.example.org"


class Stay(urllib.request.HTTPRedirectHandler):
    """Goes nowhere."""

    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(Stay)


def http(server, path, method="GET", data=None, **headers):
    """Status, headers and body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url + path, data, named, method=method)
    try:
        with OPENER.open(request, timeout=60) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def message_of(answer):
    return json.loads(answer[2])["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/batches"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_other_servers_have_is_refused_by_name_and_with_what_to_ask_instead(server, path, method):
    answer = http(server, path, method, b"{}" if method == "POST" else None)
    assert answer[0] == 404
    assert path in message_of(answer)
    assert "/v1/chat/completions" in message_of(answer) or "qv-export batch" in message_of(answer)


def test_a_wrong_method_says_which_is_right_and_a_wrong_path_where_to_look(server):
    answer = http(server, "/v1/chat/completions")
    assert answer[0] == 405
    assert "POST" in message_of(answer)
    assert answer[1]["allow"] == "POST"
    assert "/openapi.json" in message_of(http(server, "/v2/nothing"))


def test_the_model_is_found_with_and_without_a_slash_behind(server):
    for path in ("/v1/models", "/v1/models/"):
        assert [card["id"] for card in json.loads(http(server, path)[2])["data"]] == [MODEL]
    for path in (f"/v1/models/{MODEL}", f"/v1/models/{MODEL}/"):
        assert json.loads(http(server, path)[2])["id"] == MODEL


def test_a_slash_behind_the_endpoint_is_redirected_to_it(server):
    status, headers, _ = http(server, "/v1/chat/completions/", "POST", b"{}")
    assert status == 307  # which keeps method and body
    assert headers["location"].endswith("/v1/chat/completions")


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/version", "/v1/models", "/openapi.json"])
def test_a_head_is_a_get_without_its_body(server, path):
    status, headers, body = http(server, path, "HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == str(len(http(server, path)[2]))


def test_without_the_wish_no_page_from_elsewhere_may_ask(server):
    assert http(server, "/v1/models", Origin=ORIGIN)[1]["access-control-allow-origin"] is None


def test_usage_comes_with_every_chunk_where_that_is_asked(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(client, HELLO, stream=True, max_tokens=5, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] >= 1
    assert all(chunk.usage.prompt_tokens == chunks[-1].usage.prompt_tokens for chunk in chunks)


def test_what_asks_for_nothing_is_taken(client):
    neutral = {"best_of": 1, "echo": False, "use_beam_search": False, "add_generation_prompt": True}
    fields = {"metadata": {"a": "b"}, "user": "me", "store": False, "extra_body": neutral}
    assert ask(client, HELLO, max_tokens=1, **fields).choices


@pytest.fixture(scope="module")
def guarded(bundle, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEY + "\n")
    options = ("--threads", 1, "--max-context", 512, "--api-key-file", file, "--allow-origin", ORIGIN)
    with running_serve(bundle, *options) as running:
        yield running


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_a_key_is_taken_however_its_scheme_is_written(guarded, scheme):
    assert http(guarded, "/v1/models", Authorization=f"{scheme} {KEY}")[0] == 200


@pytest.mark.parametrize("value", [KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", ""])
def test_what_is_no_bearer_of_the_key_is_refused(guarded, value):
    answer = http(guarded, "/v1/models", Authorization=value)
    assert answer[0] == 401
    assert answer[1]["www-authenticate"] == "Bearer"
    assert http(guarded, "/v1/completions", Authorization=value)[0] == 401


def test_a_page_of_an_allowed_origin_may_ask_with_a_key_and_no_other_page(guarded):
    wishes = {
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization,content-type",
    }
    allowed = http(guarded, "/v1/chat/completions", "OPTIONS", Origin=ORIGIN, **wishes)
    assert allowed[0] == 200
    assert allowed[1]["access-control-allow-origin"] == ORIGIN
    assert "authorization" in allowed[1]["access-control-allow-headers"]
    other = http(guarded, "/v1/chat/completions", "OPTIONS", Origin="https://evil.example", **wishes)
    assert other[1]["access-control-allow-origin"] is None
    answer = http(guarded, "/v1/models", Origin=ORIGIN, Authorization=f"Bearer {KEY}")
    assert answer[1]["access-control-allow-origin"] == ORIGIN
    refused = http(guarded, "/v1/models", Origin=ORIGIN)
    assert refused[0] == 401
    assert refused[1]["access-control-allow-origin"] == ORIGIN  # else its script could not read why


@pytest.mark.parametrize("origin", ["*", "https://a.example", "http://localhost:3000"])
def test_an_origin_is_taken(origin):
    assert checked_origin(origin) == origin


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/", "https://a.example/x", "null", ""])
def test_what_is_no_origin_is_refused_by_name(origin):
    with pytest.raises(UserError, match="--allow-origin"):
        checked_origin(origin)
