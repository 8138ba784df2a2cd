"""Which pages' scripts may ask: origins, as browsers name them."""

import re

from export.errors import UserError


def checked_origin(origin: str) -> str:
    """An origin as browsers send it: scheme, host and port, nothing behind.

    Raises:
        UserError: it is none.
    """
    if origin != "*" and not re.fullmatch(r"https?://[^/\s?#@]+", origin):
        raise UserError(
            f"--allow-origin {origin!r:.80} is no origin. Give scheme and host, such as https://chat.example.org, or *."
        )
    return origin
