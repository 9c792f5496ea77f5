"""Checkpoints of running trainings, kept by the api so that another host can go on with them.

Files:
    checkpoints/<job>/<step>-<epoch>.tar    the newest two of a job; gone with the job
"""

from __future__ import annotations

import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, cast

from gistmill.errors import ModelUnreadable, NotFound

JOB = re.compile(r"job_[0-9a-z]{1,40}")
FILE = re.compile(r"(\d{9})-(\d{6,})\.tar")
MEMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
KEPT = 2
BLOCK = 1024 * 1024


class Readable(Protocol):
    """Bytes that are read once, from their beginning to their end."""

    def read(self, size: int, /) -> bytes:
        """Return so many bytes, fewer only at the end."""
        ...


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint that the api has: of which step, and under which epoch of the chunk's lease it was made."""

    step: int
    epoch: int
    path: Path


class CheckpointShelf:
    """The checkpoints of all jobs below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root / "checkpoints"

    def put(self, job_id: str, step: int, epoch: int, received: Path) -> None:
        """Keep a whole file, which is moved here in one step, and let go what is older than the newest two."""
        directory = self._directory(job_id)
        directory.mkdir(parents=True, exist_ok=True)
        received.replace(directory / f"{step:09d}-{epoch:06d}.tar")
        for old in self.list(job_id)[KEPT:]:
            old.path.unlink(missing_ok=True)

    def list(self, job_id: str) -> list[KeptCheckpoint]:
        """Return the checkpoints of a job, newest first."""
        directory = self._directory(job_id)
        names = sorted((path.name for path in directory.iterdir()), reverse=True) if directory.is_dir() else []
        found = ((FILE.fullmatch(name), name) for name in names)
        return [KeptCheckpoint(int(match[1]), int(match[2]), directory / name) for match, name in found if match]

    def get(self, job_id: str, step: int) -> KeptCheckpoint:
        """Return the newest checkpoint of a step.

        Raises:
            NotFound: there is none.
        """
        for checkpoint in self.list(job_id):
            if checkpoint.step == step:
                return checkpoint
        raise NotFound(f"The job {job_id} has no checkpoint of step {step}.")

    def remove(self, job_id: str) -> None:
        """Let go everything of a job."""
        shutil.rmtree(self._directory(job_id), ignore_errors=True)

    def jobs(self, *, untouched_s: float = 0.0) -> Iterator[str]:
        """Yield the ids of jobs that have checkpoints, none of them written in so many seconds."""
        limit = time.time() - untouched_s
        for path in self.root.glob("job_*"):
            if path.stat().st_mtime <= limit:
                yield path.name

    def _directory(self, job_id: str) -> Path:
        if not JOB.fullmatch(job_id):
            raise NotFound(f"'{job_id[:60]}' is not the id of a job.")
        return self.root / job_id


def pack(directory: Path, tick: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """Yield the files of a directory as a tar archive, block by block; nothing is written and little held in memory."""
    for path in sorted(directory.iterdir()):
        info = tarfile.TarInfo(path.name)
        info.size = path.stat().st_size
        yield info.tobuf(tarfile.GNU_FORMAT)
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                tick()
                yield block
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def unpack(archive: Readable, directory: Path) -> None:
    """Write the files of a tar archive into a directory, plain files with plain names only.

    Raises:
        ModelUnreadable: it is cut short, or holds anything else.
    """
    try:
        with tarfile.open(fileobj=cast(IO[bytes], archive), mode="r|") as members:
            for member in members:
                if not member.isreg() or not MEMBER.fullmatch(member.name):
                    raise ModelUnreadable(f"The checkpoint holds '{member.name[:60]}', which no checkpoint consists of.")
                # TarFile.extract has known filters only since Python 3.11.4; of a plain file nothing but its bytes is wanted.
                with cast(IO[bytes], members.extractfile(member)) as source, (directory / member.name).open("wb") as file:
                    shutil.copyfileobj(source, file, BLOCK)
    except (tarfile.TarError, EOFError) as error:
        raise ModelUnreadable(f"The checkpoint is cut short or broken ({error}).") from error
