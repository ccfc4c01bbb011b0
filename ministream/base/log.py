"""Logs: standard output, one line an event, with time, level, service name and key=value fields.

`text` is for people (`12:00:01.250 info  daq   scan started  frames=180`), `json` for machines: one object a
line with the keys `time`, `level`, `service`, `event` and the event's fields. An event that another program has logged
(`time` and `service` are given, and `via` names who repeats it) keeps its time and its service's name.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
Logger = FilteringBoundLogger

_listeners: list[Callable[[dict[str, Any]], None]] = []

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(
    service: str, *, level: LogLevel = "info", style: LogFormat = "text", stream: TextIO | None = None
) -> None:
    """Set up the logs of this process; `stream` is standard output unless given."""
    render = _render_json if style == "json" else _render_text
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _stamp,
            structlog.processors.format_exc_info,
            _let_hear,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stdout),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)


def get_logger() -> Logger:
    """Return the logger of this process: `get_logger().info("scan started", frames=180)`."""
    return cast("Logger", structlog.get_logger())


def repeat(event: Mapping[str, Any]) -> None:
    """Log an event of another program as it is: with its time, under its name (the keys `time` and `service`)."""
    fields = dict(event)
    level = _LEVELS.get(str(fields.pop("level", "info")), _LEVELS["error"])
    get_logger().log(level, fields.pop("event", ""), **fields)


@contextmanager
def heard_by(listener: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Within this context, pass a copy of every event that is logged to `listener`, which must not log itself."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def format_text(event: dict[str, Any]) -> str:
    """Render one event (as parsed from a `json` line) the way the `text` format does, without line end."""
    fields = dict(event)
    clock = str(fields.pop("time", ""))[11:23]
    level, service, what = fields.pop("level", "info"), fields.pop("service", "-"), fields.pop("event", "")
    head = f"{clock} {level:<7} {service:<7} {_printable(str(what))}"
    traceback = fields.pop("exception", None)
    pairs = "  ".join(f"{key}={_format_value(value)}" for key, value in fields.items())
    line = f"{head}  {pairs}" if pairs else head
    return f"{line}\n{traceback}" if traceback else line


def format_json(event: dict[str, Any]) -> str:
    """Render one event the way the `json` format does, without line end."""
    return json.dumps(event, default=str)


_add_time = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")


def _stamp(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    return event if "time" in event else _add_time(logger, method, event)


def _let_hear(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for listener in _listeners:
        listener(dict(event))
    return event


def _render_text(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return format_text(dict(event))


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return format_json(dict(event))


def _format_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = _printable(str(value))
    return f'"{text}"' if not text or any(c in text for c in ' "=') else text


def _printable(text: str) -> str:
    """Return `text` with line ends and control characters escaped: what a peer sent must not forge a line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
