"""The HTTP endpoint: keys, sizes, places in the queue, and kept responses."""

from __future__ import annotations

from pydantic import Field

from r2_serve.config.engines import Config, EnvName

FEEDBACK_FILE = "feedback.sqlite"
"""The file of scores beside the traces, unless the config names another."""


class ResponsesConfig(Config):
    """How long `/v1/responses` keeps responses, so that clients may go on from them and read them again."""

    file: str | None = None
    """SQLite file in which they stand in clear: it survives restarts, and the router replicas of one machine
    share it. None: each replica keeps its own in memory."""
    max_count: int = Field(default=10_000, ge=0)
    """Responses kept at most; those not used for longest go first. 0 keeps none."""
    max_bytes: int = Field(default=256_000_000, ge=1_000)
    """Their total size at most, as JSON."""
    max_age_s: float = Field(default=2_592_000.0, gt=0)
    """Seconds since the last use after which a response is forgotten. 30 days, as with OpenAI."""


class FeedbackConfig(Config):
    """What `POST /v1/r2/feedback` needs: the queries that may be rated, and their scores."""

    file: str | None = None
    """SQLite file, which the router replicas of one machine share. None: `feedback.sqlite` in `trace_dir`,
    or without that the memory of each replica, which is lost when it ends."""
    max_count: int = Field(default=200_000, ge=1)
    """Queries remembered at most, with their scores; the oldest go first."""
    max_age_s: float = Field(default=2_592_000.0, gt=0)
    """Seconds after which a query can no longer be rated and its scores are forgotten. 30 days, so that a
    book of outcomes made every week or month misses none."""


class OtelConfig(Config):
    """Export of spans and metrics by OTLP over HTTP. A collector that fails costs no answer."""

    endpoint: str = Field(pattern=r"^https?://[^\s?#]+$")
    """Address before `/v1/traces` and `/v1/metrics`, such as http://collector:4318."""
    headers_env: EnvName | None = None
    """Environment variable with headers for the collector, such as a token: `name=value,name=value`."""
    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of the queries that are recorded. A query with the client's `traceparent` follows its flag."""
    content: bool = False
    """Whether spans hold texts: the query, the steps and the answers. Off, as they may be confidential."""
    metrics_every_s: float = Field(default=60.0, gt=0)
    """Seconds between two exports of metrics."""


class EventsConfig(Config):
    """What `GET /v1/r2/events` shows."""

    texts: bool = False
    """True lets keys without limits read the texts of queries of other keys. Off, as they are theirs."""
    recent: int = Field(default=200, ge=0, le=10_000)
    """Finished queries that each router replica remembers for those who begin to watch, texts of up to 4,000
    characters included. They are in memory alone; after a restart those of `trace_dir` are read. 0: none."""


class ServerConfig(Config):
    """The HTTP endpoint."""

    api_keys_env: EnvName | None = None
    """Environment variable with comma-separated client keys, which may ask every model without a budget."""
    keys_file: str | None = None
    """File of hashed client keys, models and budgets (`r2-serve keys new`) on each router's node; read live.
    This or `api_keys_env` is required to bind an address other than loopback."""
    spend_file: str | None = None
    """SQLite file of what each key has spent. None: each router replica counts from its own start."""
    responses: ResponsesConfig = ResponsesConfig()
    """What `/v1/responses` keeps."""
    feedback: FeedbackConfig = FeedbackConfig()
    """What `/v1/r2/feedback` remembers."""
    otel: OtelConfig | None = None
    """The collector of spans and metrics by OpenTelemetry; None: none are made."""
    events: EventsConfig = EventsConfig()
    """What `GET /v1/r2/events` shows."""
    max_body_bytes: int = Field(default=32_000_000, ge=1_000)
    """Longest request body; the default holds long documents and some images."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds from a request's head to the end of its body, so that slow senders hold no place: then 408."""
    max_running: int = Field(default=64, ge=1)
    """Requests that one router replica works on at once."""
    max_queued: int = Field(default=256, ge=0)
    """Requests that wait in addition to those; more are refused with 429."""
    heartbeat_s: float = Field(default=10.0, gt=0)
    """Seconds between the SSE comments that keep a stream open; proxies close after 30 s or more."""
    trace_dir: str | None = None
    """Directory of trace JSONL files, which hold queries and answers in clear; None writes none."""
    trace_texts: bool = True
    """Whether traces hold the texts of queries, plans and answers. `false` keeps hashes and figures alone, so
    that a book made of them can be counted and compared, but neither graded anew nor trained on."""

    @property
    def feedback_file(self) -> str | None:
        """The file of scores; None for the memory of the process."""
        in_traces = f"{self.trace_dir}/{FEEDBACK_FILE}" if self.trace_dir else None
        return self.feedback.file or in_traces
