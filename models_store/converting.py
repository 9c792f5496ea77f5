"""Starts the child process that turns a pickled checkpoint into safetensors, or merges an adapter. Only it imports torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from gistmill.errors import ModelError, ModelUnreadable, UnsafeModel

LIMIT_S = 1800.0
EXIT_UNSAFE = 65


def run(source: Path, target: Path, *, limit_s: float = LIMIT_S) -> None:
    """Write the weights of `source` as safetensors into `target`.

    Raises:
        UnsafeModel: the pickle holds more than tensors.
        ModelUnreadable: it cannot be read.
        ModelError: this host has no torch, or the conversion took too long.
    """
    _run(str(source), str(target), limit_s=limit_s)


def run_adapter(source: Path, target: Path, *, limit_s: float = LIMIT_S) -> None:
    """Write the weights of the pickled adapter in `source` as safetensors into `target`.

    Raises:
        UnsafeModel, ModelUnreadable, ModelError: as `run` does.
    """
    _run("--adapter", str(source), str(target), limit_s=limit_s)


def run_merge(base: Path, adapter: Path, target: Path, *, limit_s: float = LIMIT_S) -> None:
    """Write the model of `base` with the adapter's change added to its weights into `target`, in the base's files and dtypes.

    Raises:
        ModelUnreadable: a file is broken, or the adapter does not fit.
        ModelError: this host has no torch, or it took too long.
    """
    _run("--merge", str(base), str(adapter), str(target), limit_s=limit_s)


def _run(*arguments: str, limit_s: float) -> None:
    missing = [name for name in ("torch", "transformers", "workers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"Converting needs {' and '.join(missing)}, which this host does not have: do it on a host with gistmill[worker] "
            "installed and add the result, or save the model as safetensors first."
        )
    command = [sys.executable, "-m", "workers.convert", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"Converting the model took longer than {limit_s:.0f} s.") from error
    if done.returncode == 0:
        return
    last = done.stderr.strip().splitlines()[-1:] or [f"the process ended with status {done.returncode}"]
    if done.returncode == EXIT_UNSAFE:
        raise UnsafeModel(f"The checkpoint was refused: {last[0]}")
    raise ModelUnreadable(f"The checkpoint could not be converted: {last[0]}")
