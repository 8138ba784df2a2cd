"""How messages write sizes and command lines."""

import shlex


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
