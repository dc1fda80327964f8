"""Lists, runs and reports the experiments.

python -m experiments list                                   all, with published number and ours
python -m experiments run supervised/digits_mlp --steps 100  one of them, with its own options
python -m experiments compare RUN_DIR RUN_DIR...             their metrics and curves together
python -m experiments reproduce NAME                         a published result, once more
python -m experiments verify RUN_DIR                         are its checkpoints still whole?
python -m experiments export RUN_DIR FILE.safetensors        its weights; FILE.jax: its function
python -m experiments memory NAME --mesh data=64,fsdp=4      what each of so many devices needs
python -m experiments publish RUN_DIR [--as NAME]            keeps a finished run as our result
python -m experiments report [--check]                       writes the tables in README.md
"""

import argparse
import runpy
import sys
from pathlib import Path

from experiments import (
    catalogue,
    comparison,
    front_door,
    memory,
    prediction,
    report,
    speed,
    survival,
    verification,
)
from paradigms.core.errors import InputError


def main() -> None:
    """Does what the command line says; a user's mistake is one line and status 2."""
    parser = argparse.ArgumentParser(
        "python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", title="commands")
    commands.add_parser("list", help="list the experiments; so does no command at all")
    run = commands.add_parser("run", help="run one experiment", prefix_chars="+")
    run.add_argument("name")
    run.add_argument("options", nargs=argparse.REMAINDER)
    publish = commands.add_parser("publish", help="keep a finished run as our result")
    publish.add_argument("run_dir", type=Path)
    publish.add_argument("--as", dest="result", metavar="NAME")
    publish.add_argument("--replace", action="store_true", help="write over an earlier result")
    readme = commands.add_parser("report", help="write the tables in README.md")
    readme.add_argument("--check", action="store_true", help="only tell whether it is current")
    compare = commands.add_parser("compare", help="lay runs beside each other")
    compare.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    compare.add_argument("--picture", type=Path, default=Path("comparison.png"), metavar="PNG")
    again = commands.add_parser(
        "reproduce", help="run a published result's command, and tell whether it agrees"
    )
    again.add_argument("name", help="of the result; options behind it go to the experiment")
    again.add_argument("--run-dir", type=Path, help="by default runs/reproduced/NAME")
    verify = commands.add_parser("verify", help="compare checkpoints with what was written")
    verify.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    size = commands.add_parser(
        "memory", help="compile for a mesh of any size, and tell what each device needs"
    )
    size.add_argument("name", help="of the experiment; options behind it go there")
    size.add_argument("--mesh", required=True)
    export = commands.add_parser("export", help="write the trained net for other programs")
    export.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    export.add_argument("file", type=Path, metavar="FILE")
    export.add_argument("--run", type=int, default=0, help="which of the runs, from 0")
    arguments, others = parser.parse_known_args()
    if others and arguments.command not in ("reproduce", "memory"):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        if arguments.command == "run":
            _run(arguments.name, arguments.options)
        elif arguments.command == "publish":
            print(catalogue.publish(arguments.run_dir, arguments.result, replace=arguments.replace))
        elif arguments.command == "compare":
            comparison.compare(arguments.run_dirs, arguments.picture)
        elif arguments.command == "reproduce":
            sys.exit(comparison.reproduce(arguments.name, others, arguments.run_dir))
        elif arguments.command == "memory":
            memory.report(arguments.name, arguments.mesh, others)
        elif arguments.command == "verify":
            sys.exit(verification.verify(arguments.run_dir))
        elif arguments.command == "export":
            prediction.export(arguments.run_dir, arguments.file, arguments.run)
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
    after = report.inserted(before, report.markdown(catalogue.all_claims()), "results")
    after = report.inserted(after, front_door.markdown(), "quickstart")
    after = report.inserted(after, speed.markdown(), "speed")
    after = report.inserted(after, survival.markdown(), "survival")
    if check and after != before:
        print("README.md is not current: run `python -m experiments report`", file=sys.stderr)
        sys.exit(1)
    if after != before:
        report.README.write_text(after)


if __name__ == "__main__":
    main()
