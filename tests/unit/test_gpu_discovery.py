"""Which devices a host has."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gistmill.errors import InvalidInput
from workers.gpu import Device, NvmlDiscovery, PretendedGpus, cpu_device, discover, restrict
from workers.launcher import LaunchOptions, choose_devices

A, B, C = (Device(f"GPU-{name}", "cuda", "x", 2**30) for name in ("aaa", "abb", "ccc"))
THREE = '[{"uuid": "GPU-1", "total_bytes": 1}, {"uuid": "GPU-2", "total_bytes": 2}, {"uuid": "GPU-3", "total_bytes": 3}]'


class Missing(Exception):
    """What the fake library raises."""


@dataclass
class Memory:
    total: int


@dataclass
class FakeNvml:
    """NVML with one plain GPU and one that is cut into two slices."""

    has_driver: bool = True
    calls: list[str] = field(default_factory=list)
    NVMLError = Missing
    NVML_DEVICE_MIG_ENABLE = 1

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.has_driver:
            raise Missing("no driver")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.calls.append("shutdown")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return ("plain", "sliced")[index]

    def nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:  # noqa: N802
        if handle == "plain":
            raise Missing("not supported")
        return 1, 1

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:  # noqa: N802
        if index == 2:
            raise Missing("empty slot")
        return f"slice{index}"

    def nvmlDeviceGetName(self, handle: str) -> bytes:  # noqa: N802
        return b"Fake"

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return {"plain": "GPU-plain"}.get(handle, f"MIG-{handle}")

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Memory:  # noqa: N802
        return Memory(2**30)


def test_mig_slices_are_devices_of_their_own() -> None:
    nvml = FakeNvml()
    assert [device.uuid for device in NvmlDiscovery(nvml).devices()] == ["GPU-plain", "MIG-slice0", "MIG-slice1"]
    assert nvml.calls == ["shutdown"]


def test_host_without_a_driver_has_no_gpus() -> None:
    assert NvmlDiscovery(FakeNvml(has_driver=False)).devices() == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("0,2", [A, C]), ("GPU-ccc", [C]), ("GPU-a", []), ("1,9,0", [B]), ("", []), ("GPU-ab,0", [B, A]), ("-1", [])],
)
def test_cuda_visible_devices_is_respected(visible: str, expected: list[Device]) -> None:
    assert restrict([A, B, C], visible) == expected


def test_pretended_gpus_come_from_json() -> None:
    assert [device.total_bytes for device in discover(THREE)] == [1, 2, 3]
    with pytest.raises(InvalidInput, match="PRETEND_GPUS"):
        PretendedGpus("nonsense").devices()


def test_auto_takes_every_gpu_and_else_one_cpu_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(choose_devices(LaunchOptions(pretend_gpus=THREE))) == 3
    assert len(choose_devices(LaunchOptions(pretend_gpus=THREE, processes=2))) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2")
    assert [device.uuid for device in choose_devices(LaunchOptions(pretend_gpus=THREE))] == ["GPU-2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [device.kind for device in choose_devices(LaunchOptions(pretend_gpus=THREE))] == ["cpu"]
    assert len(choose_devices(LaunchOptions(device="cpu", processes=3))) == 3


def test_gpu_that_is_asked_for_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InvalidInput, match="No GPU"):
        choose_devices(LaunchOptions(device="cuda", pretend_gpus=THREE))
    with pytest.raises(InvalidInput, match="--device"):
        choose_devices(LaunchOptions(device="tpu"))


def test_cpu_device_knows_the_memory_of_the_host() -> None:
    assert cpu_device(0).total_bytes > 2**28
