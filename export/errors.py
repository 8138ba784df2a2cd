"""The error that a user can mend, and which errors ask the program to end."""

from export.wording import plain_text


class UserError(Exception):
    """A mistake in what the user gave: a file, a flag, a prompt.

    It says what was expected, what was found and what to do. The command line prints it as it is, without a traceback,
    and exits with code 2; with `--json` it prints message and remedy apart.
    """

    def __init__(self, message: str, remedy: str | None = None) -> None:
        """`remedy`: what to do, as a sentence or a command, where it stands apart from what is wrong."""
        # Names in it come from whoever wrote the file, and it goes to terminals, logs, reports and clients.
        self.message = plain_text(message)
        self.remedy = None if remedy is None else plain_text(remedy)
        super().__init__(with_remedy(self.message, self.remedy))


def with_remedy(message: str, remedy: str | None) -> str:
    """What is wrong and what to do, one after the other: on a line of its own after a list."""
    if remedy is None:
        return message
    between = "\n" if "\n" in message else " "
    return f"{message}{between}{remedy}"


def is_request_to_stop(error: BaseException) -> bool:
    """Whether the program itself is asked to end, which no border may swallow.

    All else that is raised ends a request or a command. `except Exception` is not all else: what a native library
    written in Rust raises when it panics derives from BaseException alone.
    """
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
