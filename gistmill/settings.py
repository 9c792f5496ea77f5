"""The settings: one place that names every knob, its unit and its default.

A setting is read from the environment as `GISTMILL_SECTION__KEY`, for example `GISTMILL_WORKER__LEASE_S=30`. A secret may also
come from a file that `GISTMILL_SECTION__KEY_FILE` names. `GISTMILL_HOME` moves the data directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from gistmill.errors import Detail, InvalidInput

DEFAULT_MODEL = "google/flan-t5-base"


class DatabaseSettings(BaseModel):
    """Where rows are kept."""

    url: str = Field("", description="SQLAlchemy URL (sqlite:///… or postgresql+psycopg://…). Empty: SQLite in the home.")
    url_file: Path | None = Field(None, description="File that holds the URL.")
    statement_timeout_s: PositiveFloat = Field(
        30.0, description="PostgreSQL: longest a statement may take, and a transaction stand still between two, seconds."
    )


class RedisSettings(BaseModel):
    """Where the bells hang."""

    url: str = Field("", description="Redis URL. Empty: the embedded server of the home.")
    url_file: Path | None = Field(None, description="File that holds the URL.")
    key_prefix: str = Field("gistmill:", description="Prefix of every key.")


class ApiSettings(BaseModel):
    """The HTTP service, and where a client finds it."""

    url: str = Field("", description="Where clients and workers reach the api. Empty: the running stack of the home.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: NonNegativeInt = Field(8321, description="Port to listen on; 0 takes a free one.")
    token: str = Field("", description="The token that every request must carry.")
    token_file: Path | None = Field(None, description="File that holds the token.")
    hosts: str = Field("", description="Host names this server serves, separated by commas.")
    max_upload_bytes: PositiveInt = Field(16 * 1024**3, description="Largest dataset file, bytes.")
    max_checkpoint_bytes: PositiveInt = Field(64 * 1024**3, description="Largest checkpoint of a training, bytes.")
    max_line_bytes: PositiveInt = Field(8 * 1024**2, description="Longest line of a dataset, bytes.")
    query_timeout_s: PositiveFloat = Field(10.0, description="Longest a user's SQL query may take, seconds.")
    query_max_rows: PositiveInt = Field(10_000, description="Most rows a user's SQL query may return.")


class StoreSettings(BaseModel):
    """Where model files are kept on this host."""

    path: Path | None = Field(None, description="Directory of the model store. Empty: `models` in the home.")


class WorkerSettings(BaseModel):
    """How workers lease, renew, sweep and generate."""

    engine: Literal["auto", "transformers", "ctranslate2", "graph", "fake"] = Field(
        "auto",
        description="Engine that generates text. auto: on a CPU `ctranslate2` where it can, that is greedy jobs on T5 models; "
        "on an NVIDIA GPU `graph` where it can, that is jobs without beams on T5 models; else `transformers`. `ctranslate2`: "
        "greedy jobs that it cannot run fail. `graph`, our own T5 decode: jobs without beams on models it cannot run fail.",
    )
    lease_s: PositiveFloat = Field(30.0, description="How long a chunk stays with a worker without renewal, seconds.")
    renew_s: PositiveFloat = Field(10.0, description="Time between renewals, seconds.")
    wish_s: PositiveFloat = Field(2.0, description="Time between looks at the job's wish (cancel, pause), seconds.")
    commit_s: NonNegativeFloat = Field(1.0, description="Micro-batches faster than this are recorded together, seconds.")
    sweep_s: PositiveFloat = Field(3.5, description="Time between sweeps, seconds, jittered by a fifth.")
    margin_s: NonNegativeFloat = Field(2.0, description="A worker stops writing this long before its lease ends, seconds.")
    generate_stall_s: PositiveFloat = Field(60.0, description="Longest a generation may stand still, seconds.")
    load_stall_s: PositiveFloat = Field(600.0, description="Longest loading or fetching a model may stand still, seconds.")
    checkpoint_send_s: NonNegativeFloat = Field(
        60.0, description="Least time between two checkpoints of a training that are sent to the api, seconds."
    )
    train_stall_s: PositiveFloat = Field(300.0, description="Longest a training step may take, seconds.")
    drain_s: PositiveFloat = Field(80.0, description="How long a stopping worker may take before it is killed, seconds.")
    max_failures: PositiveInt = Field(3, description="Failures after which a chunk's items get the error.")
    max_crashes: PositiveInt = Field(3, description="Crashes without progress after which a chunk's items get the error.")
    retry_base_s: PositiveFloat = Field(2.0, description="First retry delay, seconds; doubled each time, with full jitter.")
    retry_max_s: PositiveFloat = Field(300.0, description="Longest retry delay, seconds.")
    threads: NonNegativeInt = Field(0, description="CPU threads of a worker. 0: cores divided by CPU workers.")
    lanes: NonNegativeInt = Field(
        0,
        description="Batches that the engine `ctranslate2` works on at once; they share the threads. 0: tried at first use and "
        "kept per host.",
    )
    batch_tokens: NonNegativeInt = Field(
        0, description="Token budget of a batch. 0: chosen by device; with `ctranslate2` tried at first use and kept per host."
    )
    model_bytes: NonNegativeInt = Field(0, description="Memory for resident models, bytes. 0: chosen by device.")
    fake_seconds_per_row: NonNegativeFloat = Field(0.0, description="Delay of the fake engine, seconds per row.")
    metrics_dir: Path | None = Field(None, description="Directory of further `evaluate` metric modules, one folder each.")
    metric_stall_s: PositiveFloat = Field(300.0, description="Longest a metric module may take for a page, seconds.")
    pretend_gpus: str = Field("", description="JSON list of pretended GPUs, for tests and drills.")
    lock_dir: Path | None = Field(None, description="Directory of the GPU locks. Empty: one in the temporary folder.")


class LogSettings(BaseModel):
    """How processes log."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    format: Literal["json", "text"] = Field("json", description="One JSON object per line, or text for people.")


class Settings(BaseSettings):
    """All settings of a process."""

    model_config = SettingsConfigDict(env_prefix="GISTMILL_", env_nested_delimiter="__", extra="ignore")

    home: Path = Field(Path("~/.gistmill"), description="The data directory.")
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    api: ApiSettings = ApiSettings()
    store: StoreSettings = StoreSettings()
    worker: WorkerSettings = WorkerSettings()
    log: LogSettings = LogSettings()

    @property
    def data_dir(self) -> Path:
        """The data directory as an absolute path."""
        return self.home.expanduser().absolute()

    @property
    def database_url(self) -> str:
        """The URL of the database; SQLite in the data directory unless set."""
        return _secret(self.database.url, self.database.url_file) or f"sqlite:///{self.data_dir / 'gistmill.db'}"

    @property
    def redis_url(self) -> str:
        """The URL of Redis, or an empty string when none is configured."""
        return _secret(self.redis.url, self.redis.url_file)

    @property
    def token(self) -> str:
        """The api's token, or an empty string."""
        return _secret(self.api.token, self.api.token_file)

    @property
    def store_dir(self) -> Path:
        """The directory of the model store."""
        return (self.store.path or self.data_dir / "models").expanduser().absolute()

    @property
    def served_hosts(self) -> frozenset[str]:
        """The host names, without ports, that the api answers to."""
        hosts = self.api.hosts
        named = {host.strip().lower() for host in hosts.split(",") if host.strip()}
        return frozenset(named | {"localhost", "127.0.0.1", "[::1]"})


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        InvalidInput: a variable does not fit; the message names each.
    """
    try:
        return Settings()
    except ValidationError as error:
        details = [
            Detail(
                "invalid_setting",
                problem["msg"],
                pointer="GISTMILL_" + "__".join(str(p) for p in problem["loc"]).upper(),
            )
            for problem in error.errors()
        ]
        first = details[0]
        raise InvalidInput(
            f"The environment variable {first.pointer} cannot be used: {first.message}.", details=details
        ) from error


def _secret(value: str, file: Path | None) -> str:
    if value or file is None:
        return value
    try:
        return file.read_text().strip()
    except OSError as error:
        raise InvalidInput(f"The secret file {file} cannot be read: {error.strerror}.") from error
