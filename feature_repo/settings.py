"""The project's settings: the only module that reads environment variables.

Every variable is optional. Without any, everything runs embedded: a Valkey server from a wheel as online store and
event log, Parquet and DuckDB for history, all below ``<repository folder>/data``.
"""

from functools import lru_cache
from pathlib import Path

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What the environment may say; names of variables are the aliases, in capitals."""

    model_config = SettingsConfigDict(populate_by_name=True, extra="ignore")

    repo: Path = Field(default=Path(__file__).parent, alias="TIFFIN_REPO")
    """The folder with ``feature_store.yaml`` and ``definitions.py``; data lies in ``data`` below it."""

    redis_url: SecretStr | None = Field(default=None, alias="REDIS_URL")
    """``redis://``, ``rediss://`` or ``unix://``; unset: the embedded server. Secret, since it may hold a password."""

    kafka_bootstrap_servers: str | None = Field(default=None, alias="KAFKA_BOOTSTRAP_SERVERS")
    """``host:port[,host:port]``; unset: the event log is kept in the online store's own server, as streams."""

    topic_prefix: str = Field(default="", alias="TIFFIN_TOPIC_PREFIX")
    """Put before every topic's name, so that several projects can share one Kafka."""

    predictions_url: SecretStr | None = Field(default=None, alias="TIFFIN_PREDICTIONS_URL")
    """SQLAlchemy's URL of the stored predictions, e.g. ``postgresql+psycopg://...``; unset: SQLite below ``data``."""

    partitions: int = Field(default=4, ge=1, le=1024, alias="TIFFIN_PARTITIONS")
    """Partitions of topics that we create; existing topics keep theirs."""

    session_timeout_ms: int = Field(default=10_000, ge=1000, le=1_800_000, alias="TIFFIN_SESSION_TIMEOUT_MS")
    """After so long without a word from a worker, Kafka gives its partitions to the others."""

    host: str = Field(default="127.0.0.1", alias="TIFFIN_HOST")
    port: int = Field(default=8088, ge=0, le=65535, alias="TIFFIN_PORT")

    monitor_port: int = Field(default=8089, ge=0, le=65535, alias="TIFFIN_MONITOR_PORT")
    """Where `tiffin monitor` shows what it measures."""

    budget_ms: int = Field(default=250, ge=10, le=60_000, alias="TIFFIN_BUDGET_MS")
    """So long a prediction may wait for stores in all; what computing takes comes on top."""

    read_timeout_ms: int = Field(default=100, ge=1, le=60_000, alias="TIFFIN_READ_TIMEOUT_MS")
    """So long of it for the online store: a slower one is a store that is down. Less than the budget."""

    stored_max_age_hours: int = Field(default=48, ge=1, alias="TIFFIN_STORED_MAX_AGE_HOURS")
    """Stored predictions of an older run answer nobody."""

    execution_providers: str = Field(default="CPUExecutionProvider", min_length=1, alias="TIFFIN_EXECUTION_PROVIDERS")
    """Where onnxruntime scores models, by commas, the preferred one first; see docs/inference.md."""

    model_threads: int = Field(default=1, ge=1, le=256, alias="TIFFIN_MODEL_THREADS")
    """Threads that share the trees of one call; several add them up in another order, so the last bits differ."""

    duckdb_memory: str = Field(default="2GB", alias="TIFFIN_DUCKDB_MEMORY")
    """DuckDB's memory limit; beyond it, it spills to ``data/tmp``."""

    duckdb_threads: int = Field(default=0, ge=0, alias="TIFFIN_DUCKDB_THREADS")
    """0: one a core."""

    clock_start: str | None = Field(default=None, alias="TIFFIN_CLOCK_START")
    """RFC 3339: what the clock of producer, worker and API shows at ``TIFFIN_CLOCK_ORIGIN``. For drills on history."""

    clock_origin: float | None = Field(default=None, alias="TIFFIN_CLOCK_ORIGIN")
    """Unix seconds of real time at which a drill's clock shows its start."""

    clock_rate: float = Field(default=1.0, gt=0, alias="TIFFIN_CLOCK_RATE")
    """Seconds of a drill's clock to a second of real time."""

    @field_validator(
        "redis_url", "predictions_url", "kafka_bootstrap_servers", "clock_start", "clock_origin", mode="before"
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _budget_left(self) -> "Settings":
        if self.read_timeout_ms >= self.budget_ms:
            raise ValueError(
                f"TIFFIN_READ_TIMEOUT_MS is {self.read_timeout_ms} and TIFFIN_BUDGET_MS {self.budget_ms}: nothing "
                "would be left for stored predictions when the online store is down; give the budget more"
            )
        return self

    @field_validator("repo")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @property
    def data(self) -> Path:
        """Where everything that a run makes is kept."""
        return self.repo / "data"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once; tests that set the environment call ``settings.cache_clear()``."""
    return Settings()
