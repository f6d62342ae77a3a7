"""Settings of every process, read once from the environment (`VITRINE_` prefix, `__` between levels)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TritonSettings(_Group):
    """Where the Triton Inference Server is, and how long calls may take.

    A request may take `timeout_s`, one to a model whose card says `cost: batch` `batch_timeout_s`.
    A server that says nothing for `stall_s` counts as lost until it answers again.

    Triton reads the last four: loaded models may hold `memory_bytes` of the host and
    `gpu_memory_bytes` of its GPUs (four fifths of what there is, where not set); then those that
    were not used for longest are unloaded, but no default with `pin_defaults`. A model's process that
    Triton has not taken up `start_s` after it was ready is ended.

    `required_models` must be loaded before the gateway calls itself ready; when it is empty, the
    default model of every task.
    """

    url: str = "127.0.0.1:8001"
    timeout_s: float = 60.0
    batch_timeout_s: float = 600.0
    stall_s: float = Field(default=6.0, gt=0)
    load_timeout_s: float = 30.0
    index_period_s: float = 2.0
    required_models: tuple[str, ...] = ()
    max_message_bytes: int = 256 * MIB
    memory_bytes: int | None = Field(default=None, gt=0)
    gpu_memory_bytes: int | None = Field(default=None, gt=0)
    pin_defaults: bool = False
    start_s: float = Field(default=60.0, gt=0)


class SheddingSettings(_Group):
    """When a model has too many requests to take one more; `service/http/shedding.py` says how that is judged.

    `patience_s`: how long a queue may stand. `max_under_way`: requests to one model at a time.
    """

    enabled: bool = True
    patience_s: float = Field(default=0.5, ge=0)
    max_under_way: int = Field(default=512, ge=1)


class RedisSettings(_Group):
    """Where the queue's Redis is, and the names' prefix (one hash tag, so that Cluster works)."""

    url: str = "redis://127.0.0.1:6379/0"
    queue: str = "vitrine"
    connect_timeout_s: float = 2.0


class StorageSettings(_Group):
    """Uploads and results: a directory, or an S3-compatible bucket (`s3://bucket/prefix`)."""

    url: str = ""
    endpoint: str | None = None
    min_free_bytes: int = 64 * MIB


class JobSettings(_Group):
    """Leases, attempts and lifetimes of jobs.

    `concurrency`: jobs a worker runs at a time. `max_queued`: jobs that wait, of all tenants.
    `max_running_per_tenant`: started jobs of one tenant; none means that workers are the limit.
    """

    lease_s: float = Field(default=30.0, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    concurrency: int = Field(default=4, ge=1)
    result_ttl_s: float = 24 * 3600.0
    record_ttl_s: float = 7 * 24 * 3600.0
    idempotency_ttl_s: float = 24 * 3600.0
    queue_ttl_s: float = 24 * 3600.0
    run_timeout_s: float = 3600.0
    max_queued: int = 100_000
    max_running_per_tenant: int | None = Field(default=None, ge=1)
    drain_s: float = 20.0


class WorkerSettings(_Group):
    """The worker process. `metrics_port` 0 serves no metrics; they are served on `host`."""

    metrics_port: int = Field(default=0, ge=0, le=65535)


class TracingSettings(_Group):
    """Where traces go: the base URL of an OTLP/HTTP receiver (`http://collector:4318`); none, no traces.

    `sample_ratio` is for requests whose caller has not decided already.
    """

    url: str = Field(default="", pattern=r"^(https?://.+)?$")
    sample_ratio: float = Field(default=1.0, ge=0, le=1)

    @property
    def traces_url(self) -> str:
        """Where spans are posted."""
        return f"{self.url.rstrip('/')}/v1/traces"


class LimitSettings(_Group):
    """What a request may cost; each limit is named in the error of whoever breaks it.

    `decoding_pixels`: of all pictures that are decoded at the same moment; the next ones wait.
    Decoding takes up to 16 bytes a pixel for that moment.

    `upscaled_pixels`: of a picture that super-resolution makes. Where the picture sent has more than
    `upscaled_at_once_pixels`, it is made by a job.

    `fetch_seconds`: for a URL in all. A server that gives less than 16 KiB in `fetch_stall_seconds`
    is given up before.

    A gateway that is told to end calls itself not ready at once, takes requests for
    `drain_delay_seconds` more, so that balancers notice, and then gives the running ones
    `drain_seconds`.
    """

    body_bytes: int = 64 * MIB
    image_body_bytes: int = 32 * MIB
    image_pixels: int = 64_000_000
    decoding_pixels: int = 128_000_000
    upscaled_pixels: int = Field(default=64_000_000, gt=0)
    upscaled_at_once_pixels: int = Field(default=512 * 512, ge=0)
    video_seconds: float = 600.0
    video_frames: int = 64
    video_views: int = 64
    video_pixels: int = 3840 * 2160
    decode_seconds: float = Field(default=60.0, gt=0)
    fetch_seconds: float = 10.0
    fetch_stall_seconds: float = Field(default=1.5, gt=0)
    request_seconds: float = 60.0
    drain_delay_seconds: float = Field(default=0.0, ge=0)
    drain_seconds: float = 20.0


class AuthSettings(_Group):
    """Who may call.

    `required` None: API keys are needed unless the gateway is bound to loopback. `admin_key` is one
    key with every scope beside those that `vitrine keys` made, for installations that are described
    by files and Secrets. A revoked key is refused within `cache_s`; while Redis is down, known keys
    stay good for `outage_s`. With `open_metrics`, `GET /metrics` needs no key.
    """

    required: bool | None = None
    admin_key: SecretStr | None = Field(default=None, min_length=32)
    cache_s: float = Field(default=5.0, ge=0)
    outage_s: float = Field(default=3600.0, ge=0)
    open_metrics: bool = False


class BrowserSettings(_Group):
    """What web pages may do.

    `hosts`: names by which the gateway may be called (`*.example.com` for all below); empty means
    loopback names on a loopback bind, any name elsewhere. `origins`: whose scripts may call from
    other sites (CORS), as `https://app.example.com`.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


class Settings(BaseSettings):
    """All settings; frozen, passed to the app factory and to the worker, never read at import.

    `gateway_workers` is how many processes answer HTTP on the one port.
    """

    model_config = SettingsConfigDict(
        env_prefix="VITRINE_", env_nested_delimiter="__", frozen=True, extra="ignore"
    )

    host: str = "127.0.0.1"
    port: int = 8000
    gateway_workers: int = Field(default=1, ge=1, le=256)
    data_dir: Path = Field(default_factory=lambda: Path.home() / ".local" / "share" / "vitrine")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    triton: TritonSettings = TritonSettings()
    shedding: SheddingSettings = SheddingSettings()
    redis: RedisSettings = RedisSettings()
    storage: StorageSettings = StorageSettings()
    jobs: JobSettings = JobSettings()
    worker: WorkerSettings = WorkerSettings()
    limits: LimitSettings = LimitSettings()
    tracing: TracingSettings = TracingSettings()
    auth: AuthSettings = AuthSettings()
    browsers: BrowserSettings = BrowserSettings()

    @property
    def repository(self) -> Path:
        """The Triton model repository: one entry a model, with its weights inside."""
        return self.data_dir / "repository"

    @property
    def storage_url(self) -> str:
        """The storage's URL; without one, a directory under `data_dir`."""
        return self.storage.url or (self.data_dir / "storage").resolve().as_uri()
