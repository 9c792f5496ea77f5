"""The figures of an engine's trials on this host, kept in the model store for every worker of the host.

Files:
    tuning/<engine>-<compute type>-<threads>-<digest of the key>.json    speeds by setting under one key; may be deleted
    locks/<the same name>.lock    held while it is written
"""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog
from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError

from models_store.converted import alone
from models_store.store import Store
from workers.engine.tuning import Setting

log = structlog.get_logger(__name__)


class Key(BaseModel):
    """What a speed depends on. Models of one size are taken for one: adapters of a base, and versions of a model."""

    engine: str
    engine_version: str
    compute_type: str
    weight_mib: int
    threads: int
    cpu: str
    cores: int


class Trials(BaseModel):
    """The speeds of one setting, in tokens per second."""

    lanes: PositiveInt
    budget_tokens: PositiveInt
    tokens_per_s: list[PositiveFloat]


class Notes(BaseModel):
    """A file of trials. The format's number rises when what it says changes, or how it is measured."""

    format: Literal[1] = 1
    key: Key
    trials: list[Trials]


class Notebook:
    """The trials under one key. Several processes may add to it at once; none of them loses what another wrote."""

    def __init__(self, store: Store, key: Key) -> None:
        digest = hashlib.sha256(key.model_dump_json().encode()).hexdigest()[:12]
        name = f"{key.engine}-{key.compute_type}-{key.threads}-{digest}"
        self.path = store.root / "tuning" / f"{name}.json"
        self._lock = store.root / "locks" / f"{name}.lock"
        self._key = key
        self._unwritten: list[tuple[Setting, float]] = []

    def read(self) -> dict[Setting, list[float]]:
        """Return the speeds by setting; those of a file that is broken, of another format or key do not count."""
        speeds: dict[Setting, list[float]] = {}
        with suppress(OSError, ValidationError):
            notes = Notes.model_validate_json(self.path.read_bytes())
            if notes.key == self._key:
                speeds = {Setting(trials.lanes, trials.budget_tokens): trials.tokens_per_s for trials in notes.trials}
        for setting, tokens_per_s in self._unwritten:
            speeds.setdefault(setting, []).append(tokens_per_s)
        return speeds

    def add(self, setting: Setting, tokens_per_s: float) -> dict[Setting, list[float]]:
        """Note a trial and return all, those of other processes as well. A disk that does not take it is no failure."""
        self._unwritten.append((setting, tokens_per_s))
        try:
            with alone(self._lock):
                speeds = self.read()
                self._write(speeds)
        except OSError as error:
            log.warning("tuning_not_kept", file=self.path.name, reason=error.strerror)
            return self.read()
        self._unwritten.clear()
        return speeds

    def _write(self, speeds: dict[Setting, list[float]]) -> None:
        trials = [
            Trials(lanes=setting.lanes, budget_tokens=setting.budget_tokens, tokens_per_s=figures)
            for setting, figures in sorted(speeds.items())
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(f".{os.getpid()}")
        aside.write_text(Notes(key=self._key, trials=trials).model_dump_json(indent=1) + "\n", encoding="utf-8")
        aside.replace(self.path)


def describe_cpu() -> str:
    """Return the model of this host's processor, as far as the system tells."""
    wanted = ("model name", "cpu family", "model", "stepping")
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                found.setdefault(name.strip(), value.strip())
    return " ".join(found[name] for name in wanted if name in found) or platform.processor() or platform.machine()
