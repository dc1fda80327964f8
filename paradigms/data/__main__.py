"""`python -m paradigms.data prepare NAME`: prepares a set for tensorflow-datasets."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from paradigms.core.errors import InputError
from paradigms.data.sets import prepare


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; a user's mistake is one line on stderr and status 2."""
    parser = _Parser(prog="python -m paradigms.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "prepare", help="prepare mnist, fashion_mnist or cifar10 in array_record format"
    )
    command.add_argument("name", help="mnist, fashion_mnist or cifar10")
    command.add_argument(
        "--data-dir",
        help="where to make NAME/VERSION (default: PARADIGMS_DATA_DIR, TFDS_DATA_DIR, "
        "~/tensorflow_datasets)",
    )
    command.add_argument("--raw-dir", help="folder of the official files (default: look, download)")
    options = parser.parse_args(arguments)
    try:
        print(prepare(options.name, options.data_dir, options.raw_dir))
    except (InputError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
