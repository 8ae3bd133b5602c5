"""What the node says about its work, without saying about whom.

Owns the set-up of logging, the rule of what may be written, and the context bound to each line.
Speaks structured events on the standard error stream, one line each; the only door to structlog.
Never writes a patient's name, ID or birth date, a data set, a local value, or an exception's text
that is not our own: pydicom puts the offending value into its messages.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from dicom_node import config
from dicom_node.errors import AnatomyNodeError

WITHHELD = "[withheld]"

PATIENT_KEYWORDS = frozenset(
    {
        "accessionnumber",
        "birthdate",
        "institutionname",
        "issuerofpatientid",
        "operatorsname",
        "otherpatientids",
        "otherpatientnames",
        "patient",
        "patientaddress",
        "patientage",
        "patientbirthdate",
        "patientbirthtime",
        "patientcomments",
        "patientid",
        "patientname",
        "patientsex",
        "performingphysicianname",
        "physiciansofrecord",
        "referringphysicianname",
        "requestingphysician",
    }
)
"""Keys, in lower case without underscores, whose value is never written (PS3.15 Table E.1-1, in part)."""

QUIET_LIBRARIES = ("alembic", "pydicom", "pynetdicom", "sqlalchemy", "PIL", "rt_utils")
"""Held at WARNING: below it pynetdicom prints whole data sets, and sqlalchemy its parameters."""

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""The journal's, which are syslog's."""

DATA_SET_LIBRARIES = ("pydicom", "pynetdicom", "sqlalchemy", "rt_utils")
"""Their messages may quote values of a data set; only the place in their code is written."""

PEERS_LIBRARIES = ("pydicom", "pynetdicom")
"""What they complain of is what a peer has sent or done; what follows from it the node says itself."""


def configure(settings: config.Logging, program: str, stream: TextIO | None = None) -> None:
    """Set up logging of this process: our events, and what the libraries send to stdlib logging.

    Args:
        settings: level and format.
        program: `listener`, `worker` or the command's name; on every line.
        stream: where to; the standard error stream without it.
    """
    shared = _shared_processors()
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_only_the_place, *shared, _no_error_of_ours],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _renderer(settings, handler.stream),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    _route_warnings()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(program=program)


def hush_libraries() -> None:
    """For a command that tells what became of it in its own words: no library's complaints beside."""
    for library in DATA_SET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.CRITICAL)


def catch_threads() -> None:
    """Write what ends a thread like any other exception; Python itself would print the exception's text."""

    def tell(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is not None:
            get(__name__).error("a thread has failed", exc_info=ended.exc_value)

    threading.excepthook = tell


def get(name: str) -> FilteringBoundLogger:
    """The logger of a module: `log = logs.get(__name__)`, then `log.info("what happened", key=value)`."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


def bound(**context: int | str) -> AbstractContextManager[Any]:
    """Within the block each line of this thread carries `context`, such as `job=7` or `association=12`."""
    return structlog.contextvars.bound_contextvars(**context)


def describe(error: BaseException) -> str:
    """A traceback without local values: types, places and our own reasons, innermost last.

    The texts of other libraries' exceptions are left out, since they may quote a data set.
    """
    lines: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        lines[:0] = [*(_place(frame) for frame in traceback.extract_tb(seen.__traceback__)), _name(seen)]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\n".join(lines)


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _describe_exception,
        withhold_patient_data,
    ]


def _renderer(settings: config.Logging, stream: TextIO) -> Processor:
    render: Processor = (
        structlog.processors.JSONRenderer(sort_keys=True)
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    return _with_priority(render) if _is_journal(stream) else render


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd says that this very stream goes to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        seen = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{seen.st_dev}:{seen.st_ino}"


def _with_priority(render: Processor) -> Processor:
    """What the journal takes off and keeps as the line's PRIORITY (sd-daemon(3)): `journalctl -p err`."""

    def prefixed(logger: Any, method: str, event: EventDict) -> str:
        priority = PRIORITIES.get(str(event.get("level")), PRIORITIES["info"])
        return f"<{priority}>{render(logger, method, event)!s}"

    return prefixed


def withhold_patient_data(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """The event with every patient's attribute, and every value that pydicom made, withheld."""
    return {key: _harmless(key, value) for key, value in event.items()}


def _harmless(key: str, value: Any) -> Any:
    if key.lower().replace("_", "") in PATIENT_KEYWORDS:
        return WITHHELD
    if isinstance(value, Mapping):
        return {inner: _harmless(str(inner), found) for inner, found in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(key, found) for found in value]
    if isinstance(value, BaseException):
        return _name(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return WITHHELD
    if type(value).__module__.partition(".")[0] in DATA_SET_LIBRARIES:
        # A UID is a string of theirs too, and no secret; data sets, elements and names are.
        return str(value) if type(value).__name__ == "UID" else WITHHELD
    return value


def _describe_exception(_logger: Any, _method: str, event: EventDict) -> EventDict:
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["exception"] = describe(error)
    return event


def _only_the_place(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """A library's record: where it spoke, and its text only if it cannot quote a data set."""
    record: logging.LogRecord = event["_record"]
    if record.name.partition(".")[0] in DATA_SET_LIBRARIES:
        event["event"] = "the library has a complaint; its text is withheld, since it may quote a data set"
        # The place is enough: whatever a peer sends can bring this about, again and again.
        event.pop("exc_info", None)
        event["place"] = f"{record.module}.{record.funcName}:{record.lineno}"
    return event


def _no_error_of_ours(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """What a peer brings about is no error of the node: whoever watches for errors would be woken by it."""
    record: logging.LogRecord = event["_record"]
    if record.name.partition(".")[0] in PEERS_LIBRARIES and event.get("level") in ("error", "critical"):
        event["level"] = "warning"
    return event


def _route_warnings() -> None:
    """Write a warning's kind and place; its text may quote a data set."""
    logger = logging.getLogger("warnings")

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        logger.warning("%s at %s:%d", category.__name__, Path(filename).name, lineno)

    warnings.showwarning = show


def _place(frame: traceback.FrameSummary) -> str:
    parts = Path(frame.filename).parts
    return f"{'/'.join(parts[-2:])}:{frame.lineno} in {frame.name}"


def _name(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {error.reason}" if isinstance(error, AnatomyNodeError) else name
