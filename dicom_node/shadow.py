"""One comparison of a candidate model with the approved one, on a job's stored series.

Owns what a candidate is, and what becomes of its contours: figures, and nothing else.
Speaks a configuration and a job's number in; the row of a run out.
Never writes an RT-STRUCT anywhere, and never touches a job.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import Engine

from dicom_node import contouring, logs
from dicom_node.config import Config, ModelChoice
from dicom_node.errors import AnatomyNodeError, ConfigurationError, SeriesRejectedError
from dicom_node.replay import contour_again
from dicom_node.schema import ShadowRun
from dicom_node.shadow_runs import keep
from dicom_node.story import NoSuchJobError


def candidate_of(config: Config) -> Config | None:
    """The configuration with the candidate in the place of the model; None where there is none."""
    package = config.model.shadow.package
    if package is None:
        return None
    choice: ModelChoice = config.model.model_copy(update={"package": package, "approved_sha256": None})
    return config.model_copy(update={"model": choice})


def compare(engine: Engine, config: Config, job: int, clock: Callable[[], float] = time.time) -> ShadowRun:
    """Contour a job's series with the candidate, and keep how far both agree, or why that is not known.

    Raises:
        ConfigurationError: there is no candidate, or it cannot be used: no job's fault.
        NoSuchJobError: there is no job of this number.
    """
    settings = candidate_of(config)
    if settings is None:
        raise ConfigurationError(("model.shadow: no candidate is configured",))
    candidate = contouring.package_of(settings.model).description
    began = time.perf_counter()
    agreements, failure = None, None
    try:
        done = contour_again(engine, job, settings)
    except (ConfigurationError, NoSuchJobError):
        raise
    except SeriesRejectedError as rejected:
        failure = f"it rejects the series: {rejected.reason}"
    except AnatomyNodeError as problem:
        failure = problem.reason
    except Exception as bug:
        logs.get(__name__).exception("the candidate failed by a bug")
        failure = f"an error of this program: {type(bug).__name__}; its traceback is in the log"
    else:
        agreements = [asdict(one) for one in done.agreements]
        failure = None if done.before is not None else "the job has no RT-STRUCT to compare with"
    seconds = time.perf_counter() - began
    return keep(engine, job, candidate, clock(), seconds, failure, agreements)


def end_with_the_worker() -> None:
    """End this process when the pipe from the worker that started it closes: the worker is gone."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="worker", daemon=True).start()
