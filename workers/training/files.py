"""Files that are whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".writing-"


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give an empty directory that takes the place of `target` in one step once the block has filled it.

    Everything is on disk before the rename, so a crash leaves the old directory, the new one or none, never a part of one.
    """
    aside = target.parent / f"{ASIDE}{target.name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for path in aside.iterdir():
        sync(path)
    sync(aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    sync(target.parent)


def share(source: Path, target: Path) -> None:
    """Make `target` the content of `source`, as a second name of the same file where the file system allows it."""
    aside = target.parent / f"{ASIDE}{target.name}"
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    aside.replace(target)


def sync(path: Path) -> None:
    """Return once the file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
