"""The deployment files are valid without Docker at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose_file_fits_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_specification_is_really_checked(tmp_path: Path) -> None:
    (tmp_path / "broken.yml").write_text("services:\n  api:\n    imago: x\n")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "broken.yml"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for secret in ("REDIS_PASSWORD", "POSTGRES_PASSWORD", "GISTMILL_TOKEN"):
        assert f"${{{secret}:?" in text
        assert f"${{{secret}}}" not in text
        assert f"${{{secret}:-" not in text


def test_services_wait_for_health_and_workers_may_drain() -> None:
    services = COMPOSE["services"]
    assert services["worker"]["stop_grace_period"] == "90s"
    assert services["worker"]["depends_on"]["api"]["condition"] == "service_healthy"
    assert services["api"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for name in ("redis", "postgres", "api"):
        assert "healthcheck" in services[name]
    devices = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


def test_dockerfile_has_the_targets_that_compose_builds_and_no_torch_for_the_api() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = {line.rpartition(" AS ")[2] for line in text.splitlines() if line.startswith("FROM")}
    built = {service["build"]["target"] for service in COMPOSE["services"].values() if "build" in service}
    assert built <= stages
    api = text.partition("AS api")[2].partition("FROM")[0]
    assert "worker" not in api
    assert "[server,postgres]" in api


def test_containers_do_not_run_as_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.count("USER gistmill") == 2
