"""The one exception a user is meant to see."""


class MinitronError(Exception):
    """Something the user can put right: `message` says what is wrong, `hint` what to type or change."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def first_line(error: BaseException) -> str:
    """The first line of an exception's text; the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def near_matches(name: str, allowed: list[str] | tuple[str, ...]) -> str:
    """`did you mean 'x'?` for the closest allowed name, or the list of all of them."""
    from difflib import get_close_matches

    close = get_close_matches(name, allowed, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(allowed)}"
