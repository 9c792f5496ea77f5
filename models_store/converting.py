"""Starts the child process that turns a pickled checkpoint into safetensors. Only the child imports torch."""

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
    missing = [name for name in ("torch", "transformers", "workers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"Converting needs {' and '.join(missing)}, which this host does not have: add the model from a host with "
            "gistmill[worker] installed, or save it as safetensors first."
        )
    command = [sys.executable, "-m", "workers.convert", str(source), str(target)]
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
