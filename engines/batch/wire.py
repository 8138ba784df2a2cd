"""Messages between a run and its worker processes: Python objects, each behind its length, over pipes.

Both ends are this program, so what comes is what was sent: nothing from outside is unpickled.
"""

import asyncio
import pickle
from typing import Any

_LENGTH_BYTES = 8


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message.

    Raises:
        EOFError: the other end is gone.
    """
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        return pickle.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        raise EOFError from None


def pack(message: Any) -> bytes:
    """As bytes that `receive` takes."""
    data = pickle.dumps(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data
