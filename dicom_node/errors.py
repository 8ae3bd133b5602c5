"""The errors whose class decides what becomes of a job.

Owns the common root and its four kinds; rooms derive their own from these.
Speaks reasons that a physicist or an administrator understands, with the numbers in attributes.
Never carries a patient's name, ID or birth date: reasons go to logs, metrics and job lists.
"""

from __future__ import annotations


class AnatomyNodeError(Exception):
    """The root of every error that this program raises on purpose.

    Attributes:
        reason: one sentence for a person: what, where, and what to do.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SeriesRejectedError(AnatomyNodeError):
    """The series is not ours to contour; the job ends REJECTED and nobody is paged.

    Attributes:
        code: a bounded word for metrics and tables, such as `missing_slice`.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class PermanentError(AnatomyNodeError):
    """Ours to do, and trying again cannot help: the job ends FAILED and somebody is paged."""


class TransientError(AnatomyNodeError):
    """Ours to do, and trying again may help: retried with backoff."""


class ConfigurationError(AnatomyNodeError):
    """The configuration or the machine is wrong; the program ends with exit status 78."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
