"""What a log line may say: the events, never the patient."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.valuerep import PersonName

from dicom_node import logs
from dicom_node.config import Logging
from dicom_node.errors import PermanentError

CANARY = "ZZCanary^Patient"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Logging set up on a buffer; the fixture's value reads what was written."""
    root, shown = logging.getLogger(), warnings.showwarning
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(Logging(level="debug"), "test", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], warnings.showwarning = handlers, shown
    root.setLevel(level)


def patient() -> Dataset:
    dataset = Dataset()
    dataset.PatientName = CANARY
    return dataset


def raise_with_local_value() -> None:
    local_value = CANARY
    raise ValueError(f"bad value {local_value}")


def log_patient_keywords() -> None:
    logs.get("t").info("x", patient_name=CANARY, PatientID=CANARY, inner={"PatientBirthDate": CANARY})


def log_data_set() -> None:
    logs.get("t").info(
        "x", found=patient(), name=PersonName(CANARY), several=[patient()], raw=CANARY.encode()
    )


def log_exception() -> None:
    try:
        raise_with_local_value()
    except ValueError as problem:
        logs.get("t").exception("x", problem=problem)


def log_exception_of_a_library() -> None:
    try:
        raise_with_local_value()
    except ValueError as problem:
        logging.getLogger("pynetdicom.events").exception(problem)


def log_of_a_library() -> None:
    logging.getLogger("pynetdicom.acse").error("Identifier: %s", CANARY)


def log_warning_of_pydicom() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs._route_warnings()
        warnings.warn(f"invalid value {CANARY}", UserWarning, stacklevel=1)


@pytest.mark.parametrize(
    "write",
    [
        log_patient_keywords,
        log_data_set,
        log_exception,
        log_exception_of_a_library,
        log_of_a_library,
        log_warning_of_pydicom,
    ],
)
def test_no_way_of_logging_writes_patient_data(
    write: Callable[[], None], lines: Callable[[], list[Any]]
) -> None:
    write()

    written = lines()
    assert written, "the event itself is still there"
    assert CANARY not in json.dumps(written)
    assert "Canary" not in json.dumps(written)


def test_libraries_say_nothing_below_a_warning(lines: Callable[[], list[Any]]) -> None:
    for library in logs.QUIET_LIBRARIES:
        logging.getLogger(f"{library}.part").info("chatter")

    assert lines() == []


def test_what_a_peer_makes_pynetdicom_complain_of_is_a_warning_and_an_error_elsewhere_stays_one(
    lines: Callable[[], list[Any]],
) -> None:
    logging.getLogger("pynetdicom.acse").error("Association rejected")
    logging.getLogger("sqlalchemy.pool").error("a connection is broken")
    assert [line["level"] for line in lines()] == ["warning", "error"]


def test_a_thread_that_fails_is_a_line_without_the_exceptions_text(
    lines: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back at the end
    logs.catch_threads()
    thread = threading.Thread(target=raise_with_local_value)
    thread.start()
    thread.join()

    (line,) = lines()
    assert "in raise_with_local_value" in line["exception"]
    assert CANARY not in json.dumps(line)


def test_a_line_carries_the_program_and_the_bound_context(lines: Callable[[], list[Any]]) -> None:
    with logs.bound(job=7):
        logs.get("dicom_node.worker").info("contoured", seconds=1.5)
    logs.get("dicom_node.worker").info("idle")

    first, second = lines()
    assert (first["event"], first["program"], first["job"], first["seconds"]) == ("contoured", "test", 7, 1.5)
    assert first["level"] == "info"
    assert first["timestamp"].endswith("Z")
    assert "job" not in second


def test_a_described_exception_keeps_places_and_our_own_reasons() -> None:
    try:
        try:
            raise_with_local_value()
        except ValueError as problem:
            raise PermanentError("the mask is empty") from problem
    except PermanentError as failure:
        told = logs.describe(failure)

    assert "in raise_with_local_value" in told
    assert "ValueError" in told
    assert told.endswith("PermanentError: the mask is empty")
    assert CANARY not in told


def test_the_console_format_is_for_people_and_withholds_the_same() -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure(Logging(format="console"), "test", stream)
        logs.get("t").info("hello", patient_id=CANARY)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

    assert "hello" in stream.getvalue()
    assert CANARY not in stream.getvalue()


def test_in_the_journal_each_line_has_its_priority_and_elsewhere_none(
    tmp_path: Path, lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.get("x").error("to a buffer")
    assert [line["event"] for line in lines()] == ["to a buffer"]
    with (tmp_path / "journal").open("w+") as journal, (tmp_path / "file").open("w+") as file:
        seen = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{seen.st_dev}:{seen.st_ino}")
        for stream in (journal, file):
            logs.configure(Logging(level="debug"), "test", stream)
            for level in ("debug", "info", "warning", "error", "critical"):
                getattr(logs.get("x"), level)("said")
            logging.getLogger("pydicom").error("quotes %s", CANARY)
            stream.seek(0)
        written = journal.read().splitlines()

        assert [line[:3] for line in written] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<4>"]
        assert all(json.loads(line[3:])["program"] == "test" for line in written)
        assert all(json.loads(line) for line in file)
