"""What an operator does to the database: `python -m gistmill.admin upgrade|check|document-views`."""

from __future__ import annotations

import argparse
import sys

from gistmill.db.check import check
from gistmill.db.migrate import current_version, upgrade
from gistmill.db.session import open_database
from gistmill.db.views import document
from gistmill.errors import GistmillError
from gistmill.logs import configure
from gistmill.settings import Settings, load_settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 when `check` found differences, or the error's own."""
    parser = argparse.ArgumentParser(prog="python -m gistmill.admin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("upgrade", help="bring the database to this version's tables and views")
    commands.add_parser("check", help="recount the counters of every job; exit 1 when one differs")
    commands.add_parser("document-views", help="write docs/reference/views.md to standard output")
    command = parser.parse_args(arguments).command
    try:
        if command == "document-views":
            sys.stdout.write(document())
            return 0
        settings = load_settings()
        configure(settings.log)
        return _upgrade(settings) if command == "upgrade" else _check(settings)
    except GistmillError as error:
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code


def _upgrade(settings: Settings) -> int:
    database = open_database(settings.database_url)
    upgrade(database)
    sys.stdout.write(f"The database is at version {current_version(database)}.\n")
    database.close()
    return 0


def _check(settings: Settings) -> int:
    database = open_database(settings.database_url)
    differences = check(database)
    database.close()
    for difference in differences:
        sys.stdout.write(difference + "\n")
    sys.stdout.write(f"{len(differences)} differences.\n" if differences else "All counters agree with the rows.\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
