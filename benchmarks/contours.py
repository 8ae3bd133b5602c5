"""How true the contours are to real organs: every mask of a folder, in both modes, by two readers.

Owns the comparison of contours with the masks and maps that they were traced from.
Speaks a folder of patients with one NRRD mask an organ in; a table, or Markdown, on the standard output.
Never judges a network: the masks are drawn by people, the maps are made from them.
"""

from __future__ import annotations

import gzip
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from skimage.draw import polygon2mask

from inference.contours import Contour, ContourMode, trace
from inference.outlines import signed_area
from inference.rasterising import fill
from inference.segmentation import StructureMap
from inference.volume import PlaneStack
from models.card import Code, Structure

SIMPLIFY_MM = 0.1
SOFT_VOXELS = (0.4, 0.8, 0.8)
"""Standard deviation by which a mask becomes a map with an edge as soft as a network's on a planning CT."""
COUNTED_CM3 = 1.0
CODE = Code(value="91723000", meaning="Anatomical structure")


Reader = Callable[[list[NDArray[np.float64]], tuple[int, ...]], NDArray[np.bool_]]
"""Fills the polygons of one plane, (row, column) index coordinates, within a shape."""


@dataclass(frozen=True)
class Case:
    """One organ of one patient: the map in its box, and the size of a voxel in mm (slice, row, column)."""

    organ: str
    found: StructureMap
    planes: PlaneStack


@dataclass(frozen=True)
class Truth:
    """How one way of drawing compares with the mask at the threshold.

    Attributes:
        wrong: voxels that the first reader and the second one find otherwise than the mask.
        dice: of the first reader's.
        area: relative difference between the contours' area and the mask's, over all slices.
        points: of all contours.
    """

    cm3: float
    wrong: tuple[int, int]
    dice: float
    area: float
    contours: int
    points: int


WAYS: tuple[tuple[str, ContourMode, bool], ...] = (
    ("voxel", "voxel", False),
    ("smooth, of the mask", "smooth", False),
    ("smooth, of a soft map", "smooth", True),
)


def cases(folder: Path) -> Iterator[Case]:
    """Each mask below the folder that holds anything."""
    for path in sorted(folder.rglob("*.nrrd")):
        mask, spacing_mm = read_nrrd(path)
        if mask.any():
            yield Case(path.stem, _boxed(mask, path.stem), _planes(mask.shape, spacing_mm))


def compare(case: Case, mode: ContourMode, soft: bool) -> Truth:
    """Draw one organ, read it back twice, and compare."""
    found = _softened(case.found) if soft else case.found
    contours = trace(found, case.planes, mode, SIMPLIFY_MM)
    mask = found.mask
    first, second = (_read(contours, found, reader) for reader in (_by_scan_lines, _by_point_in_polygon))
    area = sum(signed_area(contour.points) for contour in contours)
    voxel_cm3 = case.planes.row_spacing_mm * case.planes.column_spacing_mm / 1000
    return Truth(
        cm3=float(found.voxels @ case.planes.slice_thickness_mm[found.box[0]]) * voxel_cm3,
        wrong=(int((first != mask).sum()), int((second != mask).sum())),
        dice=float(2 * (first & mask).sum() / max(first.sum() + mask.sum(), 1)),
        area=float(area / mask.sum() - 1),
        contours=len(contours),
        points=sum(len(contour.points) for contour in contours),
    )


def measure(folder: Path) -> dict[str, dict[str, list[Truth]]]:
    """By way and organ, one a patient."""
    measured: dict[str, dict[str, list[Truth]]] = {name: defaultdict(list) for name, _, _ in WAYS}
    for case in cases(folder):
        for name, mode, soft in WAYS:
            measured[name][case.organ].append(compare(case, mode, soft))
    return measured


HEADINGS = ("organ", "masks", "cm3", "least Dice", "largest area error", "wrong voxels", "points a contour")


def rows(by_organ: dict[str, list[Truth]]) -> Iterator[tuple[str, ...]]:
    """A line an organ, and two for all of them together."""
    every = [one for several in by_organ.values() for one in several]
    yield from (_row(organ, several) for organ, several in sorted(by_organ.items()))
    yield _row(f"all of {COUNTED_CM3:g} cm3 or more", [one for one in every if one.cm3 >= COUNTED_CM3])
    yield _row("all smaller ones", [one for one in every if one.cm3 < COUNTED_CM3])


def _row(name: str, several: Sequence[Truth]) -> tuple[str, ...]:
    if not several:
        return (name, "0", *[""] * (len(HEADINGS) - 2))
    sizes = sorted(one.cm3 for one in several)
    size = f"{sizes[0]:.2f}" if len(sizes) == 1 else f"{sizes[0]:.2f} to {sizes[-1]:.2f}"
    return (
        name,
        str(len(several)),
        size,
        f"{min(one.dice for one in several):.4f}",
        f"{max((one.area for one in several), key=abs):+.2%}",
        " / ".join(str(sum(one.wrong[reader] for one in several)) for reader in (0, 1)),
        f"{sum(one.points for one in several) / max(sum(one.contours for one in several), 1):.0f}",
    )


def _read(contours: Iterable[Contour], found: StructureMap, reader: Reader) -> NDArray[np.bool_]:
    """Within the structure's box; what a contour covers beyond it would be outside of every voxel."""
    filled = np.zeros(found.mask.shape, np.bool_)
    corner = np.array(found.start[1:])
    slices: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    for contour in contours:
        slices[contour.slice_index - found.start[0]].append(contour.points - corner)
    for index, polygons in slices.items():
        filled[index] = reader(polygons, filled.shape[1:])
    return filled


def _by_scan_lines(polygons: list[NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return fill(polygons, *shape)


def _by_point_in_polygon(polygons: list[NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """scikit-image's, exclusive or over the contours of a slice."""
    filled = np.zeros(shape, np.bool_)
    for polygon in polygons:
        low = np.maximum(np.floor(polygon.min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 1, shape)
        filled[low[0] : high[0], low[1] : high[1]] ^= polygon2mask(high - low, polygon - low)
    return filled


def _softened(found: StructureMap) -> StructureMap:
    probability = ndimage.gaussian_filter(found.probability, SOFT_VOXELS)
    return StructureMap(found.structure, found.start, probability, 0.5, None, ())


def _boxed(mask: NDArray[np.bool_], organ: str) -> StructureMap:
    margin = 4
    spans = [(int(axis.min()), int(axis.max())) for axis in np.nonzero(mask)]
    start = [max(0, low - margin) for low, _ in spans]
    box = tuple(slice(first, high + 1 + margin) for first, (_, high) in zip(start, spans, strict=True))
    structure = Structure(name=organ[:16], channel=1, color=(0, 200, 0), code=CODE, volume_cm3=(0.01, 9999))
    first = (start[0], start[1], start[2])
    return StructureMap(structure, first, mask[box].astype(np.float32), 0.5, None, ())


def _planes(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> PlaneStack:
    origins = np.zeros((shape[0], 3))
    origins[:, 2] = spacing_mm[0] * np.arange(shape[0])
    return PlaneStack(origins, np.eye(3)[0], np.eye(3)[1], *spacing_mm[1:], shape[1], shape[2])


def read_nrrd(path: Path) -> tuple[NDArray[np.bool_], tuple[float, float, float]]:
    """A uint8 NRRD as bool (slices, rows, columns), and its spacing in mm in that order."""
    header, _, content = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    sizes = [int(size) for size in fields["sizes"].split()]
    raw = gzip.decompress(content) if fields["encoding"].startswith("gz") else content
    columns, rows, slices = (
        float(np.linalg.norm([float(part) for part in vector.strip("()").split(",")]))
        for vector in fields["space directions"].split()
    )
    return np.frombuffer(raw, np.uint8).reshape(sizes[::-1]) > 0, (slices, rows, columns)


def show(measured: dict[str, dict[str, list[Truth]]]) -> None:
    """Print a table for each way of drawing."""
    for name, by_organ in measured.items():
        table = Table(*HEADINGS, title=name, title_justify="left")
        for row in rows(by_organ):
            table.add_row(*row)
        Console(width=140).print(table)


def as_markdown(measured: dict[str, dict[str, list[Truth]]]) -> str:
    """The same for a document."""
    lines = []
    for name, by_organ in measured.items():
        lines += [f"### {name[0].upper()}{name[1:]}", "", f"| {' | '.join(HEADINGS)} |"]
        lines += [f"|{'---|' * len(HEADINGS)}", *(f"| {' | '.join(row)} |" for row in rows(by_organ)), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["--markdown"]):
        sys.exit("usage: python -m benchmarks.contours DIR [--markdown]")
    measured = measure(Path(sys.argv[1]))
    if sys.argv[2:]:
        print(as_markdown(measured))
    else:
        show(measured)
