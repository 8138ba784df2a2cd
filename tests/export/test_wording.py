import pytest

from export.errors import UserError
from export.wording import command_line, plain_line, plain_text, size_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (7_116_000, "7.1 MB"),
        (19_949_000, "19.9 MB"),
        (999_960, "1 MB"),
        (999_999_999, "1 GB"),
        (17_600_000_000, "17.6 GB"),
        (145_000_000_000, "145 GB"),
    ],
)
def test_a_size_has_the_unit_that_a_person_reads(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


def test_a_command_can_be_pasted_whatever_its_paths_hold() -> None:
    assert command_line("run", "dir with space ü", "--prompt", "it's") == (
        "qv-export run 'dir with space ü' --prompt 'it'\"'\"'s'"
    )


@pytest.mark.parametrize(
    ("character", "escape"),
    [
        ("\x00", "x00"),
        ("\x07", "x07"),
        ("\x1b", "x1b"),
        ("\r", "x0d"),
        ("\x7f", "x7f"),
        ("\x9b", "x9b"),
        ("\u202e", "u202e"),
        ("\u2066", "u2066"),
        ("\ud800", "ud800"),
        ("\ufffe", "ufffe"),
    ],
)
def test_a_control_character_is_shown_as_its_escape(character: str, escape: str) -> None:
    shown = plain_text(f"a{character}[31mb")
    assert shown == f"a\\{escape}[31mb"
    shown.encode("utf-8")


def test_text_of_any_language_stays_as_it_is() -> None:
    text = "Größe\t10 µm\n你好 \U0001f600 é"
    assert plain_text(text) == text
    assert plain_line(text) == "Größe\\t10 µm\\n你好 \U0001f600 é"


def test_long_text_loses_its_middle() -> None:
    shown = plain_text("a" * 30 + "b" * 10_000_000 + "c" * 30, 40)
    assert shown.startswith("a" * 20 + " [... ")
    assert shown.endswith(" ...] " + "c" * 20)
    assert len(shown) < 100


def test_an_error_of_the_users_holds_no_control_character_and_has_an_end() -> None:
    error = UserError("no \x1b]0;owned\x07 " + "x" * 50_000_000, "try \x1b[2J again")
    for text in (str(error), error.message, str(error.remedy)):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert len(text) < 50_000
    assert str(error).endswith("try \\x1b[2J again")
