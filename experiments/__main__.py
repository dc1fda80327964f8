"""Lists, runs and reports the experiments.

python -m experiments                                        all, with published number and ours
python -m experiments run supervised/digits_mlp --steps 100  one of them, with its own options
python -m experiments publish RUN_DIR [--as NAME]            keeps a finished run as our result
python -m experiments report [--check]                       writes the table in README.md
"""

import argparse
import runpy
import sys
from pathlib import Path

from experiments import catalogue, report
from paradigms.core.errors import InputError


def main() -> None:
    """Does what the command line says; a user's mistake is one line and status 2."""
    parser = argparse.ArgumentParser(
        "python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", title="commands")
    run = commands.add_parser("run", help="run one experiment", prefix_chars="+")
    run.add_argument("name")
    run.add_argument("options", nargs=argparse.REMAINDER)
    publish = commands.add_parser("publish", help="keep a finished run as our result")
    publish.add_argument("run_dir", type=Path)
    publish.add_argument("--as", dest="result", metavar="NAME")
    publish.add_argument("--replace", action="store_true", help="write over an earlier result")
    readme = commands.add_parser("report", help="write the table of results in README.md")
    readme.add_argument("--check", action="store_true", help="only tell whether it is current")
    arguments = parser.parse_args()
    try:
        if arguments.command == "run":
            _run(arguments.name, arguments.options)
        elif arguments.command == "publish":
            print(catalogue.publish(arguments.run_dir, arguments.result, replace=arguments.replace))
        elif arguments.command == "report":
            _report(arguments.check)
        else:
            report.show(catalogue.all_claims())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _run(name: str, options: list[str]) -> None:
    sys.argv[1:] = options
    module = f"experiments.{catalogue.find(name).replace('/', '.')}"
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _report(check: bool) -> None:
    before = report.README.read_text() if report.README.exists() else ""
    after = report.inserted(before, report.markdown(catalogue.all_claims()))
    if check and after != before:
        print("README.md is not current: run `python -m experiments report`", file=sys.stderr)
        sys.exit(1)
    if after != before:
        report.README.write_text(after)


if __name__ == "__main__":
    main()
