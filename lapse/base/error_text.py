"""Floor 0. The text of an exception, whose own code may fail to give it."""

from collections.abc import Callable


def text_of(error: BaseException, show: Callable[[BaseException], str] = str) -> str:
    """What `show` makes of an exception, or its type if that raises anything: there is still an error to report."""
    try:
        return show(error)
    except BaseException:
        return f"{type(error).__name__} (its text cannot be shown)"


def with_type(error: BaseException) -> str:
    """An exception as the last line of its traceback shows it, for `text_of`."""
    return f"{type(error).__name__}: {error}"
