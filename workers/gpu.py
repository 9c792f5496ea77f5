"""Which devices this host has. The seam `Discovery` lets tests and drills pretend GPUs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import structlog

from gistmill.errors import InvalidInput

log = structlog.get_logger(__name__)

SCORING = "cpu-scoring"


@dataclass(frozen=True)
class Device:
    """What one worker process is pinned to. `uuid` is what CUDA_VISIBLE_DEVICES takes; `total_bytes` is the whole memory."""

    uuid: str
    kind: Literal["cuda", "cpu"]
    name: str
    total_bytes: int


class Discovery(Protocol):
    """Finds the GPUs of a host."""

    def devices(self) -> list[Device]:
        """Return every GPU or MIG slice, in the driver's order."""
        ...


class NvmlDiscovery:
    """Asks NVIDIA's management library; a host without driver or library has no GPUs."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml

    def devices(self) -> list[Device]:
        """Return the GPUs, each MIG slice on its own."""
        nvml = self._nvml or _import_nvml()
        if nvml is None:
            return []
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            log.debug("no_nvidia_driver", reason=str(error))
            return []
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            return [_describe(nvml, part) for handle in handles for part in _parts(nvml, handle)]
        finally:
            nvml.nvmlShutdown()


class PretendedGpus:
    """GPUs that a JSON list of {uuid, name, total_bytes} names."""

    def __init__(self, text: str) -> None:
        self._text = text

    def devices(self) -> list[Device]:
        """Return the GPUs of the list."""
        try:
            rows = json.loads(self._text)
            return [Device(row["uuid"], "cuda", row.get("name", "pretended"), int(row["total_bytes"])) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput("GISTMILL_WORKER__PRETEND_GPUS is not a JSON list of {uuid, name, total_bytes}.") from error


def discover(pretended: str = "", *, visible: str | None = None) -> list[Device]:
    """Return the GPUs that this process may use; `visible` is a CUDA_VISIBLE_DEVICES to respect."""
    found = (PretendedGpus(pretended) if pretended else NvmlDiscovery()).devices()
    return found if visible is None else restrict(found, visible)


def restrict(devices: list[Device], visible: str) -> list[Device]:
    """Keep what CUDA_VISIBLE_DEVICES names, by index or by the beginning of a uuid, up to the first name that fits nothing."""
    kept: list[Device] = []
    for name in (part.strip() for part in visible.split(",")):
        if name.isdigit() and int(name) < len(devices):
            kept.append(devices[int(name)])
            continue
        matching = [device for device in devices if name and device.uuid.startswith(name)]
        if len(matching) != 1:
            break
        kept += matching
    return kept


def cpu_device(number: int) -> Device:
    """Return the host's CPU as the device of its n-th CPU worker."""
    return Device(f"cpu-{number}", "cpu", "CPU", _memory_bytes())


def scoring_device() -> Device:
    """Return the host's CPU as the device of the worker that scores."""
    return Device(SCORING, "cpu", "CPU", _memory_bytes())


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _parts(nvml: Any, handle: Any) -> list[Any]:
    """Return the MIG slices of a GPU, or the GPU itself."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return [handle]
    if current != nvml.NVML_DEVICE_MIG_ENABLE:
        return [handle]
    slices = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            slices.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except nvml.NVMLError:
            continue
    return slices


def _describe(nvml: Any, handle: Any) -> Device:
    name, uuid = _text(nvml.nvmlDeviceGetName(handle)), _text(nvml.nvmlDeviceGetUUID(handle))
    return Device(uuid, "cuda", name, int(nvml.nvmlDeviceGetMemoryInfo(handle).total))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
