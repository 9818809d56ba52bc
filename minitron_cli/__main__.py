"""The entry point: `minitron ...` and `python -m minitron_cli ...`."""

import sys
from collections.abc import Sequence

from minitron_cli.errors import MinitronError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit: 0 done, 1 understood but cannot be done, 2 usage, 130 interrupted."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    from minitron_cli.cli.app import app

    try:
        app(args=None if arguments is None else list(arguments), prog_name="minitron")
    except MinitronError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return 0


if __name__ == "__main__":
    main()
