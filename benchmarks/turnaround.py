"""From the last slice to the stored RT-STRUCT: the real node against the chain that everybody writes first.

Owns the series (178 slices of 512 x 512 of the phantom), the run of both, and their ratio.
Speaks seconds by stage; grace and forward pass are taken off, and the naive chain has neither.
Never compares figures of different runs or different masks: both draw what the network found here.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import RTStructureSetStorage

from benchmarks import memory, naive
from benchmarks.figures import Figure, at_least, at_most, main
from dicom_node.config import Destination
from dicom_node.ct_series import CtSeries, assemble
from dicom_node.ct_slice import read_slice
from dicom_node.phantom import write_phantom
from dicom_node.received import on_ct
from dicom_node.rehearsal import NODE, SCANNER, Rehearsal, RehearsalError, Turnaround
from dicom_node.send import send_folder
from inference.segmentation import Segmentation
from models.card import PACKAGES, read_package

SLICES, MATRIX = 178, 512
_SPACING_MM = (2.0, 0.9765625, 0.9765625)
_TIMEOUT_S = 900.0
_OWN_LIMIT_S = 1.5  # "about 1 s" on two shared cores
_RATIO_LIMIT = 20.0


@dataclass(frozen=True)
class _Run:
    """One run of the node.

    Attributes:
        peaks_gib: peak resident memory by process.
        drawn: what the PACS received, on the CT's grid.
    """

    turnaround: Turnaround
    peaks_gib: dict[str, float]
    drawn: Segmentation


def measure() -> tuple[Figure, ...]:
    """Run the node, then the naive chain with the node's own masks, on one series."""
    description = read_package(PACKAGES / "anatomynet-hn").description
    with tempfile.TemporaryDirectory(prefix="anatomynode-bench-") as scratch:
        folder = Path(scratch) / "ct"
        write_phantom(folder, SLICES, MATRIX, _SPACING_MM)
        run = _through_the_node(folder, Path(scratch) / "node")
        masks = _whole_masks(run.drawn, (SLICES, MATRIX, MATRIX))
        peer = naive.contour(folder, masks, description.input.spacing_mm, Path(scratch) / "naive.dcm")
    own = run.turnaround.own_s
    figures = [
        *(Figure(f"node: {stage}", seconds, "s") for stage, seconds in run.turnaround.stages.items()),
        *(Figure(f"naive: {stage}", seconds, "s") for stage, seconds in peer.seconds.items()),
        at_most("last slice to stored RT-STRUCT, less grace and forward pass", own, _OWN_LIMIT_S, "s"),
        Figure("the naive chain, without the network", peer.total, "s"),
        at_least("the node is quicker by", peer.total / own, _RATIO_LIMIT, "times"),
    ]
    peaks = run.peaks_gib
    worker = at_most("peak memory of the worker", peaks.get("work", np.nan), memory.PEAK_LIMIT_GIB, "GiB")
    return (*figures, worker, Figure("peak memory of the listener", peaks.get("listen", np.nan), "GiB"))


def _through_the_node(folder: Path, scratch: Path) -> _Run:
    with Rehearsal(scratch) as node:
        send_folder(
            folder, Destination(name="node", host="127.0.0.1", port=node.port, ae_title=NODE), SCANNER
        )
        node.wait(node.is_idle, _TIMEOUT_S, "no RT Structure Set came back in time")
        peaks = memory.peaks_gib(node.process_id)
        job = node.jobs()[0]
        if job.turnaround is None:
            raise RehearsalError(f"the job ended {job.state}: {job.reason}")
        (kept,) = node.archive.instances(RTStructureSetStorage)
        structures = read_package(PACKAGES / "anatomynet-hn").description.structures
        drawn = on_ct(dcmread(kept.file), _read(folder), structures, "")
        return _Run(job.turnaround, peaks, drawn)


def _read(folder: Path) -> CtSeries:
    return assemble([read_slice(file) for file in sorted(folder.iterdir())], min_slices=2)


def _whole_masks(drawn: Segmentation, shape: tuple[int, int, int]) -> dict[str, NDArray[np.bool_]]:
    masks = {}
    for one in drawn.structures:
        if one.mask.any():
            masks[one.structure.name] = np.zeros(shape, bool)
            masks[one.structure.name][one.box] = one.mask
    return masks


if __name__ == "__main__":
    main(f"Turnaround, {SLICES} slices of {MATRIX} x {MATRIX}", measure)
