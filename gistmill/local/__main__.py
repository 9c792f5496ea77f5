"""`python -m gistmill.local`: the supervisor of a private stack, started by its first user."""

from __future__ import annotations

import sys

from gistmill.errors import AlreadyRunning, GistmillError
from gistmill.local.supervisor import supervise
from gistmill.settings import load_settings


def main() -> int:
    """Run the stack until its last user has left."""
    try:
        return supervise(load_settings(), private=True, workers="--no-workers" not in sys.argv)
    except AlreadyRunning:
        return AlreadyRunning.exit_code
    except GistmillError as error:
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
