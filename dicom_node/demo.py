"""The demo: a node and a stand-in PACS on loopback, a series sent, its RT-STRUCT shown.

Owns what a person sees of it: progress, tables, and the picture's path.
Speaks a folder of CT slices in (or the phantom), a folder with the results out.
Never claims more than it saw: for the phantom it says what the model found and what it missed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import RTStructureSetStorage
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dicom_node import contouring
from dicom_node.config import Destination
from dicom_node.ct_folder import look_through
from dicom_node.ct_series import CtSeries, assemble
from dicom_node.ct_slice import read_slice
from dicom_node.errors import SeriesRejectedError
from dicom_node.phantom import write_phantom
from dicom_node.received import on_ct
from dicom_node.rehearsal import NODE, SCANNER, JobSeen, Rehearsal, RehearsalError
from dicom_node.rt_struct import NOT_A_MEDICAL_DEVICE
from dicom_node.send import send_folder
from dicom_node.states import JobState
from inference.flags import flag_words
from inference.segmentation import Segmentation, StructureMap
from models.card import PACKAGES, read_package

Truth = Mapping[str, NDArray[np.bool_]]

_TIMEOUT_S = 900.0
_FOUND_DICE, _MISSED_DICE = 0.7, 0.3
_STAGES = {
    "arrival": "receiving, first to last slice",
    "completeness": "waiting for late slices (grace)",
    "queue": "waiting for the worker",
    "decode": "decoding the last slices, assembling",
    "preprocess": "resampling, cropping",
    "forward": "the network's forward pass",
    "postprocess": "back on the CT's grid",
    "rt_struct": "contours, RT Structure Set",
    "check": "reading back and checking",
    "keeping": "keeping it on disk",
    "delivery": "sending to the PACS",
}


@dataclass(frozen=True)
class _Result:
    """What came back.

    Attributes:
        rt_struct: the PACS's copy of the file, in the output folder.
        found: the contours of that file on the CT's grid.
    """

    job: JobSeen
    series: CtSeries
    rt_struct: Path
    found: Segmentation


def run(ct: Path | None, output: Path) -> None:
    """Show the node at work, from the first slice to the picture; everything it starts, it ends.

    Args:
        ct: folder with a CT series; None paints the phantom.
        output: folder for `rt_struct.dcm`, `contours.png` and `contours.html`; made where it is missing.

    Raises:
        SeriesRejectedError: the node refused the series; the reason is the node's own.
        RehearsalError: the node failed; the reason holds the end of its log.
    """
    console = Console(highlight=False)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="anatomynode-demo-") as scratch:
        folder, truth = ct, None
        if folder is None:
            folder = Path(scratch) / "ct"
            with console.status("painting an anthropomorphic phantom ..."):
                truth = write_phantom(folder).structures
            console.print("No CT given: the patient is a phantom, painted from geometry.")
        with console.status("starting the node and a stand-in PACS on loopback ...") as status:
            node = Rehearsal(Path(scratch) / "node")
            with node:
                status.stop()
                console.print(
                    f"The node listens on 127.0.0.1:{node.port}, its stand-in PACS on :{node.archive.port}."
                )
                _send(console, folder, node)
                job = _wait(console, node)
                result = _collect(node, job, folder, output)
    _show(console, result)
    if truth is not None:
        _compare(console, result, truth)
    picture, page = output / "contours.png", output / "contours.html"
    with console.status("drawing the contours on the CT ..."):
        for file in (picture, page):
            contouring.write_preview(
                result.series, result.rt_struct.read_bytes(), dict(result.job.report or {}), file
            )
    console.print(
        f"\nRT-STRUCT: {result.rt_struct}\npicture:   {picture}\npage:      {page}"
        f"\n\n[bold]{NOT_A_MEDICAL_DEVICE}[/]"
    )


def _send(console: Console, folder: Path, node: Rehearsal) -> None:
    """Push the folder, as a scanner would."""
    door = Destination(name="node", host="127.0.0.1", port=node.port, ae_title=NODE)
    columns = (TextColumn("sending slices"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("sending")
        summary = send_folder(
            folder, door, SCANNER, lambda done, total: progress.update(task, completed=done, total=total)
        )
    if summary.failed:
        raise RehearsalError(f"the node did not take every file: {summary.in_words()}")


def _wait(console: Console, node: Rehearsal) -> JobSeen:
    """The job of the series that was contoured, once every job has ended.

    Raises:
        SeriesRejectedError: none was contoured, and one was rejected.
    """
    with console.status("waiting for late slices ...") as status:

        def has_ended() -> bool:
            jobs = node.jobs()
            if any(job.state is JobState.RUNNING for job in jobs):
                status.update("contouring ...")
            elif any(job.state is JobState.READY for job in jobs):
                status.update("sending the RT Structure Set ...")
            return node.is_idle()

        node.wait(has_ended, _TIMEOUT_S, "no RT Structure Set came back in time")
    jobs = node.jobs()
    for job in jobs:
        if job.state is JobState.SENT:
            return job
    if jobs[-1].state is JobState.REJECTED:
        raise SeriesRejectedError(jobs[-1].reason_code or "rejected", jobs[-1].reason or "")
    raise RehearsalError(f"the job ended {jobs[-1].state}: {jobs[-1].reason}")


def _collect(node: Rehearsal, job: JobSeen, folder: Path, output: Path) -> _Result:
    """Fetch what the PACS holds, and lay it on the CT again."""
    kept = node.archive.instances(RTStructureSetStorage)
    mine = [one for one in kept if one.sop_instance_uid == job.sop_instance_uid]
    if len(mine) != 1 or node.archive.duplicates:
        raise RehearsalError(
            f"the PACS holds the RT Structure Set {len(mine)} times; {node.archive.duplicates} came twice"
        )
    target = output / "rt_struct.dcm"
    shutil.copyfile(mine[0].file, target)
    files = [file for file, _ in look_through(folder).slices[job.series_instance_uid]]
    series = assemble([read_slice(file) for file in files], min_slices=2)
    structures = read_package(PACKAGES / "anatomynet-hn").description.structures
    return _Result(job, series, target, on_ct(dcmread(target), series, structures, _device(job)))


def _device(job: JobSeen) -> str:
    return str((job.report or {}).get("device"))


def _show(console: Console, result: _Result) -> None:
    """The ROIs, and where the time went."""
    rois = Table(title=f"RT Structure Set, drawn on {_device(result.job)}", title_justify="left")
    rois.add_column("ROI")
    for heading in ("volume", "contours", "confidence"):
        rois.add_column(heading, justify="right")
    rois.add_column("to look at")
    for roi in (result.job.report or {}).get("rois", ()):
        confidence = "" if roi["confidence"] is None else f"{roi['confidence']:.2f}"
        flags = flag_words(roi["flags"])
        rois.add_row(roi["name"], f"{roi['volume_cm3']:.1f} cm³", str(roi["contours"]), confidence, flags)
    console.print(rois)

    turnaround = result.job.turnaround
    assert turnaround is not None
    times = Table(title="Turnaround", title_justify="left")
    times.add_column("stage")
    times.add_column("seconds", justify="right")
    for stage, seconds in turnaround.stages.items():
        times.add_row(_STAGES.get(stage, stage), f"{seconds:.2f}")
    times.add_section()
    times.add_row("last slice to stored RT-STRUCT", f"[bold]{turnaround.after_last_slice_s:.2f}[/]")
    times.add_row("  less grace and forward pass", f"{turnaround.own_s:.2f}")
    console.print(times)


def _compare(console: Console, result: _Result, truth: Truth) -> None:
    """How what was drawn agrees with the phantom's own organs."""
    table = Table(title="Against the phantom's true organs", title_justify="left")
    for heading, justify in (
        ("organ", "left"),
        ("true", "right"),
        ("drawn", "right"),
        ("Dice", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    planes = result.series.volume.planes
    voxel_cm3 = planes.row_spacing_mm * planes.column_spacing_mm * planes.slice_thickness_mm.mean() / 1000
    for one in result.found.structures:
        if (true := truth.get(one.structure.name)) is None:
            continue
        dice, drawn = _agreement(one, true)
        verdict = "found" if dice >= _FOUND_DICE else "missed" if dice < _MISSED_DICE else "partly"
        table.add_row(
            one.structure.name,
            f"{true.sum() * voxel_cm3:.1f} cm³",
            f"{drawn * voxel_cm3:.1f} cm³",
            f"{dice:.2f}",
            verdict,
        )
    console.print(table)
    console.print(
        "The model has never seen the phantom, and a phantom is no patient: this shows that each contour "
        "lies where its organ is, and where the model goes astray; not how good it is on people."
    )


def _agreement(one: StructureMap, true: NDArray[np.bool_]) -> tuple[float, int]:
    """Dice of a structure with a mask of the whole volume, and the structure's voxels."""
    drawn = int(one.mask.sum())
    common = int((one.mask & true[one.box]).sum()) if drawn else 0
    return 2 * common / max(drawn + int(true.sum()), 1), drawn
