"""Which exceptions are the user's to mend?"""


class UserError(Exception):
    """A mistake in what the user gave: a file, a flag, a prompt.

    The message says what was expected, what was found and what to do. The command line prints it as it is,
    without a traceback, and exits with code 2.
    """


def is_request_to_stop(error: BaseException) -> bool:
    """Whether the program itself is asked to end, which no border may swallow.

    All else that is raised ends a request or a command. `except Exception` is not all else: what a native library
    written in Rust raises when it panics derives from BaseException alone.
    """
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
