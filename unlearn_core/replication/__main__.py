"""The command line behind the Makefile: ``python -m unlearn_core.replication --help``."""

from __future__ import annotations

import argparse
import os
import sys

from ..registry import ConfigError


def number(text: str) -> int | None:
    """A number, or nothing where the Makefile was given none."""
    return int(text) if text else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="unlearn_core.replication", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if name not in ("book", "new-paper"):
            default = "paper" if name in ("rehearse", "size") else "ci"
            sub.add_argument("--profile", default=default, help="ci, laptop, workstation or paper")
        if name not in ("book", "execute", "new-paper"):
            sub.add_argument("--papers", default="", help="slugs, separated by spaces; default all")
        if name in ("reproduce", "rehearse"):
            sub.add_argument(
                "--jobs", type=number, help="notebooks at a time; default as many as cores"
            )
        return sub

    sub = command("reproduce", "run what is out of date, then render the book")
    sub.add_argument("--launch", default="", help="a command put before each notebook's")
    sub.add_argument(
        "--engine",
        choices=["", "local", "ray"],
        default="",
        help="make all papers' rows as one plan, and then run the notebooks: local, by processes "
        "of this machine, --jobs at a time; ray, by those of a Ray cluster",
    )
    sub.add_argument(
        "--address",
        default="",
        help="of a Ray cluster, or auto for the one on this machine; default $RAY_ADDRESS, "
        "or one that is started for this run",
    )
    sub.add_argument("--no-book", action="store_true", help="don't render the book")
    command("list", "say what would run, and for how long")
    command("size", "compute what a profile takes: memory, operations, hours on a card")
    sub = command("execute", "execute one notebook (used by reproduce)")
    sub.add_argument("paper")
    command("rehearse", "run the paper profile, or another, for a few steps on a made-up hub")
    sub = command("publish", "run on a clean checkout of HEAD, and copy the results to the book")
    sub.add_argument(
        "--rows",
        choices=["", "published", "made"],
        default="",
        help="published: fail where a row would be made; made: leave out what is not made yet",
    )
    command("book", "render the book from what was published and what was run here")
    sub = command("new-paper", "write the files of a paper that is to be replicated")
    sub.add_argument("slug", help="its short name, like my_paper")
    options = parser.parse_args(argv)
    try:
        return run(options)
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    if options.command == "new-paper":
        from .new_paper import new_paper

        for file in new_paper(options.slug):
            print(os.path.relpath(file))
        return 0
    # Imported here: a notebook's process needs neither the book nor the rehearsal.
    from . import runner

    papers = options.papers.split() if "papers" in options else []
    failed = False

    def check(profile: str, *, rehearsal: bool = False) -> None:
        """Whether all that the experiments name is there, of the papers that would run."""
        slugs = [
            slug
            for slug in runner.chosen(papers, profile)
            if runner.out_of_date(slug, profile, rehearsal)
        ]
        if slugs:
            from .trials.check import check  # only then, as it needs PyTorch

            for slug in slugs:
                check(slug, profile, rehearsal=rehearsal)

    if options.command == "execute":
        runner.execute(options.paper, options.profile)
    elif options.command == "list":
        for slug, file in runner.chosen(papers, options.profile).items():
            profile = file.profile(options.profile)
            state = "would run" if runner.out_of_date(slug, options.profile) else "up to date"
            print(
                f"{slug:16} {state:12} about {profile.minutes:g} min, {profile.memory_gb:g} GB, "
                f"{profile.hardware}, seeds {', '.join(map(str, profile.seeds))}",
                flush=True,
            )
        check(options.profile)
    elif options.command == "size":
        from .sizes.table import compute, printed

        for slug, name, size in compute(options.profile, runner.chosen(papers, options.profile)):
            print(printed(slug, name, size), flush=True)
    elif options.command == "reproduce":
        check(options.profile)
        if options.engine:
            from .engine import reproduce

            if options.launch:
                raise ConfigError("LAUNCH is put before notebooks; an ENGINE shares out their rows")
            outcomes, table = reproduce(
                options.profile,
                papers,
                engine=options.engine,
                jobs=options.jobs,
                address=options.address,
            )
            if table:
                print(table, end="\n\n")
        else:
            outcomes = runner.reproduce(
                options.profile, papers, jobs=options.jobs, launch=options.launch
            )
        print(runner.summary(outcomes))
        failed = any(o.state in ("failed", "rows missing") for o in outcomes)
        if not options.no_book:
            from .pages.book import build_book

            print(f"The book: {os.path.relpath(build_book())}")
    elif options.command == "rehearse":
        from .rehearsal import rehearse

        check(options.profile, rehearsal=True)
        outcomes = rehearse(papers, profile=options.profile, jobs=options.jobs)
        print(runner.summary(outcomes))
        failed = any(o.state == "failed" for o in outcomes)
    elif options.command == "publish":
        from .publish import publish

        outcomes = publish(options.profile, papers, rows=options.rows)
        print(runner.summary(outcomes))
        failed = any(o.state == "failed" for o in outcomes)
    elif options.command == "book":
        from .pages.book import build_book

        print(f"The book: {os.path.relpath(build_book())}")
    return int(failed)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # what a locale's letters can't say is no reason to end
        stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
