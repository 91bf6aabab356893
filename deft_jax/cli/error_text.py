"""What the user is told of an exception."""


def error_text(error: Exception) -> str:
    """Return one line that says what happened, with the file's name if there is one."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return name + error.strerror
    return " ".join(str(error).split()) or type(error).__name__
