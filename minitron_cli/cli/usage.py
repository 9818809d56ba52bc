"""Errors of the command line's parser in the form of all others: what is wrong, and what to type instead."""

from typing import Any

import typer

from minitron_cli.errors import MinitronError, near_matches

# typer keeps its parser to itself; the base of its one public error is the base of them all.
PARSER_ERROR: Any = typer.BadParameter.__base__


class UsageError(MinitronError):
    """A command line that the parser does not take."""

    exit_code = 2


def as_error(error: Any) -> UsageError:
    """The parser's `error` as one of ours. A value that one of our own parsers refuses keeps its hint."""
    command = error.ctx.command_path if error.ctx else "minitron"
    hint = f"see `{command} --help`"
    flag = f"{error.param.opts[0]}: " if getattr(error, "param", None) is not None else ""
    cause = error.__cause__
    if isinstance(cause, MinitronError):
        return UsageError(f"{flag}{cause.message}", cause.hint or hint)
    if possible := getattr(error, "possibilities", None):
        return UsageError(f"`{command}` has no option {error.option_name}", near_matches(error.option_name, possible))
    message, _, suggestion = (error.message if flag else error.format_message()).partition(". Did you mean ")
    message = flag + message[:1].lower() + message[1:].rstrip(".")
    return UsageError(message, f"did you mean {suggestion}" if suggestion else hint)


def show_help(error: Any) -> bool:
    """Print what the parser shows where a group is called without a command: its help. False for any other error."""
    if type(error).show is PARSER_ERROR.show:
        return False
    error.show()
    return True
