"""The process that builds one engine.

    engines.backends.tensorrt.build.worker EVENTS_FD PARENT_PID < request.json

A process of its own, since TensorRT-RTX aborts beside registered plugins, keeps the first logger for good, and cannot
be interrupted; and since its peak memory is then the build's. Events go to EVENTS_FD, one JSON object a line:
{"progress": [phase, fraction]}, and last {"facts": ...}, {"user_error": message} or {"engine_error": message}.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from engines.backends.tensorrt.build.compile import compile_engine
from engines.backends.tensorrt.options import BuildRequest
from engines.session import EngineError
from export.errors import UserError

Event = Mapping[str, Any]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Build what standard input asks for."""
    events = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8", buffering=1)

    def send(event: Event) -> None:
        events.write(json.dumps(event) + "\n")

    _end_with_the_parent(int(sys.argv[2]))
    request = BuildRequest.from_json(sys.stdin.read())
    try:
        facts = compile_engine(request, lambda phase, fraction: send({"progress": [phase, fraction]}))
        send({"facts": facts.to_json_object()})
    except UserError as error:
        send({"user_error": str(error)})
    except EngineError as error:
        send({"engine_error": str(error)})


def _end_with_the_parent(parent: int) -> None:
    """Ctrl-C ends this process at once, and so does the parent's death: TensorRT itself would go on for minutes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)


if __name__ == "__main__":
    main()
