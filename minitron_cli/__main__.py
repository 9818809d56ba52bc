"""The entry point: `minitron ...` and `python -m minitron_cli ...`."""

import errno
import os
import signal
import sys
from collections.abc import Sequence

from minitron_cli.errors import MinitronError

# Errors of writing to stdout; those of files carry a file name, and become a MinitronError elsewhere.
_STDOUT = (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EBADF)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit: 0 done, 1 understood but cannot be done, 2 usage, 130 interrupted."""
    _prepare_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # else nohup or the parent process has set it
            signal.signal(number, _stop)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    try:
        code = _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OSError as error:
        if error.filename is not None or error.errno not in _STDOUT:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more when it flushes at its end
        return _fail(MinitronError(f"the output cannot be written: {error.strerror}", "where does stdout go?"))


def _run(arguments: Sequence[str] | None) -> int:
    from minitron_cli.cli.app import app
    from minitron_cli.cli.usage import PARSER_ERROR, as_error, show_help

    try:
        os.getcwd()
        code = app(args=None if arguments is None else list(arguments), prog_name="minitron", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except MinitronError as error:
        return _fail(error)
    except PARSER_ERROR as error:
        return error.exit_code if show_help(error) else _fail(as_error(error))
    except FileNotFoundError as error:
        if error.filename is not None:
            raise
        return _fail(MinitronError("the working directory is gone", "change into one that exists"))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1


def _fail(error: MinitronError) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _stop(number: int, frame: object) -> None:
    """End as an exception does, so that temporary files are removed on the way out."""
    sys.exit(128 + number)


def _prepare_streams() -> None:
    """Closed standard streams become the null device, lest a file we open takes their number; names that stdout's
    encoding does not have are escaped.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
