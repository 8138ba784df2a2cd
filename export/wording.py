"""How messages write sizes, command lines, and text that a stranger wrote."""

import re
import shlex

MAX_MESSAGE_CHARACTERS = 20_000

# What moves a terminal's cursor, ends an XML document or turns text around: C0 and C1 controls but for tab and newline,
# the bidirectional controls, the line separators, and halves of surrogate pairs, which no UTF-8 can hold.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def plain_text(text: str, most: int = MAX_MESSAGE_CHARACTERS) -> str:
    """Text that a terminal, a log or a report may show: control characters as escapes, of bounded length.

    Names of tensors, files and models come from whoever wrote the file. What is cut is the middle: a message begins
    with what is wrong and ends with what to do.
    """
    if len(text) > most:
        half = most // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters more ...] {text[-half:]}"
    return _CONTROLS.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def plain_line(text: str, most: int = MAX_MESSAGE_CHARACTERS) -> str:
    """The same in one line."""
    return plain_text(text, most).replace("\n", "\\n").replace("\t", "\\t")


def size_text(size_bytes: float) -> str:
    """Bytes in the unit that a person reads: 900 B, 7.1 MB, 17.6 GB."""
    size = float(size_bytes)
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 999.95:
            return f"{_short(size)} {unit}"
    return f"{_short(size / 1000)} GB"


def _short(value: float) -> str:
    """One digit behind the point, none where it is zero."""
    return f"{value:.1f}".removesuffix(".0")


def command_line(*arguments: object) -> str:
    """A command of qv-export that a shell takes as it is written, whatever the paths hold."""
    return shlex.join(["qv-export", *map(str, arguments)])
