"""Errors that are the caller's to mend."""


class DeftError(ValueError):
    """A value the caller gave cannot be used; the message is one line that says why.

    The command line prints the message alone and exits with code 2.
    """


class CapacityError(DeftError):
    """A request does not fit the pages, nodes, rows or context it was given."""
