"""Which exceptions are the user's to mend?"""


class UserError(Exception):
    """A mistake in what the user gave: a file, a flag, a prompt.

    The message says what was expected, what was found and what to do. The command line prints it as it is,
    without a traceback, and exits with code 2.
    """
