"""The launcher: one worker process per GPU, pinned before torch is imported, restarted when it crashes, drained at the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from gistmill.errors import AlreadyRunning, InvalidInput
from gistmill.states import SCORED_KINDS
from workers import allocator
from workers.gpu import SCORING, Device, cpu_device, discover, scoring_device
from workers.locks import lock_directory, try_lock

log = structlog.get_logger(__name__)

# A worker that ends with this status (sysexits: EX_CONFIG) would do so again: it is not restarted.
EXIT_CONFIG = 78
POLL_S = 0.1

ChildCommand = Callable[[Device, str, int], list[str]]


@dataclass(frozen=True)
class LaunchOptions:
    """What to launch, and how patient to be."""

    device: str = "auto"
    processes: int | None = None
    # Whether there are workers that run models, and whether one more scores: that waits for no device and imports no torch.
    has_models: bool = True
    has_scoring: bool = False
    pretend_gpus: str = ""
    lock_dir: Path | None = None
    drain_s: float = 80.0
    backoff_s: float = 1.0
    longest_backoff_s: float = 60.0
    healthy_after_s: float = 60.0


@dataclass
class Seat:
    """A place for one worker: its device, the lock on it, and the process that sits there now."""

    device: Device
    lock: int | None
    process: subprocess.Popen[bytes] | None = None
    worker: str = ""
    lifeline: int = -1
    started_at: float = 0.0
    crashes: int = 0
    start_at: float = field(default_factory=time.monotonic)
    is_retired: bool = False


def choose_devices(options: LaunchOptions) -> list[Device]:
    """Return the devices to use: every visible GPU, or CPU workers when there is none or they are asked for.

    Raises:
        InvalidInput: GPUs are asked for and there are none.
    """
    if options.device not in ("auto", "cuda", "cpu"):
        raise InvalidInput(f"--device takes auto, cuda or cpu, not '{options.device}'.")
    gpus = [] if options.device == "cpu" else discover(options.pretend_gpus, visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpus:
        return gpus if options.processes is None else gpus[: options.processes]
    if options.device == "cuda":
        raise InvalidInput("No GPU was found. Check the driver with nvidia-smi, or use --device cpu.")
    return [cpu_device(number) for number in range(options.processes or 1)]


class Launcher:
    """Starts, watches and ends the workers of this host."""

    def __init__(self, options: LaunchOptions, child_command: ChildCommand, on_death: Callable[[str], None]) -> None:
        self.options = options
        self.child_command = child_command
        self.on_death = on_death
        self.seats: list[Seat] = []
        self._signals = 0

    def run(self) -> int:
        """Run until a signal ends it or no worker is left; return the exit status.

        Raises:
            AlreadyRunning: other launchers hold every GPU.
        """
        devices = choose_devices(self.options) if self.options.has_models else []
        self.seats = self._take_seats([*devices, scoring_device()] if self.options.has_scoring else devices)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)
        while not self._signals:
            for seat in self.seats:
                self._look_after(seat)
            if all(seat.is_retired for seat in self.seats):
                return 1
            time.sleep(POLL_S)
        self._drain()
        return 0

    def _take_seats(self, devices: Sequence[Device]) -> list[Seat]:
        directory = lock_directory(self.options.lock_dir)
        seats = []
        for device in devices:
            lock = try_lock(directory, device.uuid) if device.kind == "cuda" else None
            if device.kind == "cuda" and lock is None:
                log.warning("device_taken", device=device.uuid)
                continue
            seats.append(Seat(device, lock))
        if all(seat.device.uuid == SCORING for seat in seats) and self.options.has_models:
            raise AlreadyRunning("Other Gistmill workers use every GPU of this host. Stop them first, or use --device cpu.")
        return seats

    def _look_after(self, seat: Seat) -> None:
        """Start the worker of a seat when it is time, and notice when it has died."""
        if seat.process is None:
            if not seat.is_retired and time.monotonic() >= seat.start_at:
                self._start(seat)
            return
        status = seat.process.poll()
        if status is None:
            return
        self._leave(seat)
        log.warning("worker_ended", worker=seat.worker, device=seat.device.uuid, status=status)
        self.on_death(seat.worker)
        if status == EXIT_CONFIG:
            seat.is_retired = True
            return
        if time.monotonic() - seat.started_at > self.options.healthy_after_s:
            seat.crashes = 0
        seat.crashes += 1
        longest_s = min(self.options.longest_backoff_s, self.options.backoff_s * 2 ** (seat.crashes - 1))
        seat.start_at = time.monotonic() + longest_s * random.uniform(0.5, 1.0)

    def _start(self, seat: Seat) -> None:
        seat.worker = str(uuid.uuid4())
        reading, seat.lifeline = os.pipe()
        kept = [reading] if seat.lock is None else [reading, seat.lock]
        visible = seat.device.uuid if seat.device.kind == "cuda" else ""
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if seat.device.kind == "cpu":
            # CPU workers that each take all cores spend their time waiting for each other.
            share = (os.cpu_count() or 1) // max(1, sum(other.device.uuid != SCORING for other in self.seats))
            environment.setdefault("GISTMILL_WORKER__THREADS", str(max(1, share)))
            if seat.device.uuid != SCORING:
                environment |= allocator.environment(environment)
        # In a session of its own, so that Ctrl-C reaches the launcher alone. CUDA reads its variable when torch is imported.
        seat.process = subprocess.Popen(
            self.child_command(seat.device, seat.worker, reading),
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=kept,
        )
        os.close(reading)
        seat.started_at = time.monotonic()
        log.info("worker_launched", worker=seat.worker, device=seat.device.uuid, pid=seat.process.pid)

    def _leave(self, seat: Seat) -> None:
        seat.process = None
        os.close(seat.lifeline)

    def _drain(self) -> None:
        """Ask every worker to end; kill what is left after the drain time or at a second signal."""
        sitting = [seat for seat in self.seats if seat.process is not None]
        _send(sitting, signal.SIGTERM)
        deadline = time.monotonic() + self.options.drain_s
        while sitting and time.monotonic() < deadline and self._signals < 2:
            sitting = self._still_sitting(sitting)
            time.sleep(POLL_S / 2)
        if sitting:
            log.warning("workers_killed", workers=[seat.worker for seat in sitting])
            _send(sitting, signal.SIGKILL)
        while sitting := self._still_sitting(sitting):
            time.sleep(POLL_S / 2)

    def _still_sitting(self, seats: Sequence[Seat]) -> list[Seat]:
        left = []
        for seat in seats:
            if seat.process is not None and seat.process.poll() is None:
                left.append(seat)
                continue
            self._leave(seat)
            self.on_death(seat.worker)
        return left

    def _note_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1


def _send(seats: Sequence[Seat], number: int) -> None:
    for seat in seats:
        if seat.process is not None:
            seat.process.send_signal(number)


def worker_command(kinds: Sequence[str]) -> ChildCommand:
    """Return how to start a real worker: the scoring one takes evaluate jobs, the others the rest of these kinds."""

    def command(device: Device, worker: str, lifeline: int) -> list[str]:
        taken = [kind for kind in kinds if (kind in SCORED_KINDS) == (device.uuid == SCORING)]
        pinned = ["--device-uuid", device.uuid, "--device-kind", device.kind, "--device-name", device.name]
        sized = ["--device-bytes", str(device.total_bytes), "--kinds", ",".join(taken)]
        return [sys.executable, "-m", "workers", "--child", worker, "--lifeline", str(lifeline), *pinned, *sized]

    return command
