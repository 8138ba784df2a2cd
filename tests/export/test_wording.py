import pytest

from export.wording import command_line, size_text


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
