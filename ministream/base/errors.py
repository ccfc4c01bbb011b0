"""The one exception that is meant for people."""


class UserError(ValueError):
    """Something that the user can mend: its text says what is wrong, where, and what to do.

    A program that meets one logs that text as a single line and ends with exit code 2. Every other exception
    is a fault of ours and keeps its traceback.
    """
