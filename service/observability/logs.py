"""JSON (or readable) log lines from our own code and from the libraries, through one pipe.

Every line has `timestamp`, `level`, `logger`, `event`, `part` (gateway, worker, supervisor) and `pid`;
lines about a request or a job have the ids that docs/observability.md names.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import orjson
import structlog

from service.settings import Settings


def configure_logging(
    settings: Settings, part: str, handler: logging.Handler | None = None
) -> None:
    """Send every log line of the process to `handler` (default: stderr) in the format that the settings name."""
    colours = handler is None and sys.stderr.isatty()
    handler = handler or logging.StreamHandler(sys.stderr)
    origin = {"part": part, "pid": os.getpid()}

    def tell_origin(logger: Any, method: str, event: Any) -> Any:
        return event | origin

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        tell_origin,
    ]
    renderer: list[structlog.typing.Processor]
    if settings.log_format == "json":
        renderer = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_serialise),
        ]
    else:
        # The plain formatter: the rich one takes seconds and shows the values of all variables.
        plain = structlog.dev.plain_traceback
        renderer = [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in ("httpx2", "httpcore2", "sse_starlette"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _serialise(event: dict[str, Any], **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()
