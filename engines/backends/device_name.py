"""The name of a GPU on a command line: `cuda`, or `cuda:1` for the second."""

import re

from export.errors import UserError


def device_index(name: str | None) -> int:
    """Which GPU is meant; None is the first.

    Raises:
        UserError: it is no such name.
    """
    if name is None:
        return 0
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if found is None:
        raise UserError(
            f"--device must be cuda, or cuda:1 for the second GPU and so on; found {name!r:.100}."
        )
    return int(found[1] or 0)
