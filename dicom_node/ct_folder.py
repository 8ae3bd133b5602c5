"""CT series in a folder: found, chosen and read in parallel.

Owns the walk through a folder, what lies there beside the CT, and the choice among several series.
Speaks paths in, one `CtSeries` out, and notes for the person who asked.
Never skips a file in silence: what is ignored is counted, and a damaged slice refuses its series.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dicom_node.config import SeriesRules
from dicom_node.ct_series import CtSeries, SeriesBuilder
from dicom_node.ct_slice import CtHeader, SliceRejectedError, read_header, read_slice
from dicom_node.errors import SeriesRejectedError
from dicom_node.reconstruction import Candidate, Ranked, rank
from dicom_node.refusals import Refusal

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


_NEAREST_TO_CT = (Refusal.ENHANCED_CT, Refusal.LOCALIZER, Refusal.NOT_CT, Refusal.NOT_DICOM)


def no_progress(_what: str, _done: int, _total: int) -> None:
    """For callers whom nobody watches."""


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        slices: the files of each series, with their headers or why they are refused.
        ignored: how many files of each kind are not CT images.
        why_ignored: for each kind the reason that the first such file gave.
    """

    slices: dict[str, tuple[tuple[Path, CtHeader | SliceRejectedError], ...]]
    ignored: Counter[str]
    why_ignored: Mapping[str, str]


def look_through(folder: Path, progress: Progress = no_progress) -> Found:
    """Read the headers of all files in and below a folder.

    Raises:
        SeriesRejectedError: a damaged DICOM file that may belong to any series.
        OSError: the folder or a file cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    slices: dict[str, list[tuple[Path, CtHeader | SliceRejectedError]]] = {}
    ignored: Counter[str] = Counter()
    why_ignored: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        for done, (path, seen) in enumerate(zip(paths, pool.map(_glance, paths), strict=True), start=1):
            progress("looking through the folder", done, len(paths))
            if isinstance(seen, SliceRejectedError) and seen.is_foreign:
                ignored[seen.code] += 1
                why_ignored.setdefault(seen.code, seen.reason)
            elif seen.series_instance_uid:
                slices.setdefault(seen.series_instance_uid, []).append((path, seen))
            elif isinstance(seen, SliceRejectedError):
                raise SeriesRejectedError(seen.code, f"{seen.reason}; it may be a slice of the series")
    return Found({uid: tuple(files) for uid, files in sorted(slices.items())}, ignored, why_ignored)


def read_folder(
    folder: Path, rules: SeriesRules, model_spacing_mm: float, progress: Progress = no_progress
) -> tuple[CtSeries, tuple[str, ...]]:
    """The CT series of a folder, and notes on what was ignored and why this series was chosen.

    Raises:
        SeriesRejectedError: there is no CT series, several patients or studies, or the chosen series
            cannot be contoured.
        OSError: the folder or a file cannot be read.
    """
    found = look_through(folder, progress)
    notes = [f"ignored {count} file(s): {code}" for code, count in sorted(found.ignored.items())]
    if not found.slices:
        raise no_ct(found)
    ranked = _ranked(found, rules, model_spacing_mm)
    chosen = ranked[0].candidate.series_instance_uid if ranked else next(iter(found.slices))
    if len(found.slices) > 1:
        notes += _told(ranked)
    return read_series([path for path, _ in found.slices[chosen]], rules, progress), tuple(notes)


def no_ct(found: Found) -> SeriesRejectedError:
    """What to raise where there is no slice: code and words of what is nearest to a CT, and the counts."""
    told = ", ".join(f"{count} {code}" for code, count in sorted(found.ignored.items())) or "it is empty"
    nearest = next((kind for kind in _NEAREST_TO_CT if kind in found.ignored), Refusal.NOT_CT)
    why = f"; {found.why_ignored[nearest]}" if nearest in found.why_ignored else ""
    return SeriesRejectedError(nearest.value, f"the folder holds no CT that can be contoured: {told}{why}")


def _ranked(found: Found, rules: SeriesRules, model_spacing_mm: float) -> tuple[Ranked, ...]:
    """The series by the rule; too short or damaged ones only where there is no other."""
    headers = {
        uid: [seen for _, seen in files if isinstance(seen, CtHeader)] for uid, files in found.slices.items()
    }
    _refuse_several_studies([header for some in headers.values() for header in some])
    whole = [
        some
        for uid, some in headers.items()
        if len(some) == len(found.slices[uid]) and len(some) >= rules.min_slices
    ]
    usable = whole or [some for some in headers.values() if some]
    return rank((Candidate.of(some) for some in usable), rules.exclude_kernels, model_spacing_mm)


def _refuse_several_studies(headers: Sequence[CtHeader]) -> None:
    """Several scans of one study are reconstructions to choose from; several studies are not."""
    patients = len({header.patient_id for header in headers})
    studies = len({header.study_instance_uid for header in headers})
    if patients > 1 or studies > 1:
        raise SeriesRejectedError(
            Refusal.MIXED_SERIES.value,
            f"the folder holds CT of {patients} patient(s) and {studies} studies; give one study at a time",
        )


def _told(ranked: Sequence[Ranked]) -> list[str]:
    """Why the first was chosen, and what the others are; UIDs, not descriptions, name them."""
    return [
        f"{'contoured' if place == 0 else 'left'}: series {one.candidate.series_instance_uid} "
        f"({', '.join(one.reasons)})"
        for place, one in enumerate(ranked)
    ]


def read_series(paths: Sequence[Path], rules: SeriesRules, progress: Progress) -> CtSeries:
    """One series from all of its files.

    Raises:
        SeriesRejectedError: it cannot be contoured.
        OSError: a file cannot be read.
    """
    builder = SeriesBuilder()

    def take(path: Path) -> None:
        try:
            builder.add(read_slice(path))
        except SliceRejectedError as problem:
            builder.refuse(problem)

    with ThreadPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(take, paths), start=1):
            progress("reading slices", done, len(paths))
    return builder.build(rules.min_slices)


def _glance(path: Path) -> CtHeader | SliceRejectedError:
    try:
        return read_header(path)
    except SliceRejectedError as problem:
        return problem
