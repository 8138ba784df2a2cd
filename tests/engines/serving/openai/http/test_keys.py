import openai
import pytest

from engines.serving.openai.http.keys import checked_keys, read_keys
from export.errors import UserError
from tests.engines.serving.openai.served import HELLO, ask
from tests.support.serve import running_serve

KEYS = ("0123456789abcdef", "fedcba9876543210")


def test_keys_are_lines_of_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of two teams\n{KEYS[0]}\n\n  {KEYS[1]}\n")
    assert read_keys(file) == KEYS


@pytest.mark.parametrize("content", ["", "# none\n", "short\n", "with a space in it\n", "é" * 20])
def test_a_file_without_a_sound_key_is_refused_without_saying_the_key(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_keys(file)
    assert str(file) in str(caught.value)
    assert content.strip() not in str(caught.value) or content.startswith("#") or not content


def test_an_empty_variable_is_no_key():
    with pytest.raises(UserError, match="16 printable"):
        checked_keys([""], "QV_EXPORT_API_KEY")


def test_only_who_has_a_key_may_ask_and_health_is_open(bundle, tmp_path):
    file = tmp_path / "keys"
    file.write_text("\n".join(KEYS))
    options = ("--threads", 1, "--max-context", 512, "--model-name", "qwen2-vl-tiny", "--api-key-file", file)
    with running_serve(bundle, *options) as server:
        for key in KEYS:
            assert ask(server.client(key), HELLO, max_tokens=1).choices
        for wrong in (KEYS[0][:-1], KEYS[0] + "0", "none"):
            with pytest.raises(openai.AuthenticationError):
                ask(server.client(wrong), HELLO, max_tokens=1)
        with pytest.raises(openai.AuthenticationError) as caught:
            server.client("none").models.list()
        assert caught.value.code == "invalid_api_key"
        assert server.get("/health")[0] == server.get("/ready")[0] == server.get("/metrics")[0] == 200
        assert not any(key in line for line in server.lines for key in KEYS)
