"""How true the contours are to real organs: every mask of a folder, in both modes, by two readers.

Owns the comparison of contours with the masks and maps that they were traced from.
Speaks a folder of patients with one NRRD mask an organ in; a table, or Markdown, on the standard output.
Never judges a network: the masks are drawn by people, the maps are made from them.
"""

from __future__ import annotations

import gzip
import re
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
            organ = re.sub(r"[-_](Lt|Rt)$", "", path.stem).replace("_", "-")
            yield Case(organ, _boxed(mask, organ), _planes(mask.shape, spacing_mm))


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
    first = (start[0], start[1], start[2])
    return StructureMap(_structure(organ), first, mask[box].astype(np.float32), 0.5, None, ())


def _structure(name: str) -> Structure:
    return Structure(name=name[:16], channel=1, color=(0, 200, 0), code=CODE, volume_cm3=(0.01, 9999))


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


@dataclass(frozen=True)
class Shape:
    """An ellipse with a hole of the same form, on pixels of a millimetre."""

    name: str
    radii_px: tuple[float, float]
    hole: float = 0.0
    """Its size relative to the whole."""

    @property
    def area(self) -> float:
        """Square pixels."""
        return float(np.pi * self.radii_px[0] * self.radii_px[1] * (1 - self.hole**2))

    def covered(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """How much of each pixel it covers, somewhere and in any direction: (1, rows, columns)."""
        extent, fine = 2 * int(max(self.radii_px)) + 8, 16
        angle, (row, column) = rng.uniform(0, np.pi), (extent - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
        at = (np.arange(extent * fine) + 0.5) / fine - 0.5
        down, across = at[:, None] - row, at[None] - column
        along = (down * np.cos(angle) + across * np.sin(angle)) / self.radii_px[0]
        aside = (across * np.cos(angle) - down * np.sin(angle)) / self.radii_px[1]
        radius = np.hypot(along, aside)
        inside = (radius <= 1) & (radius >= self.hole)
        return inside.reshape(1, extent, fine, extent, fine).mean(axis=(2, 4), dtype=np.float32)


SHAPES = (
    *(Shape(f"disc, radius {radius:g} px", (radius, radius)) for radius in (3.0, 3.5, 4.0, 6.0, 12.0)),
    Shape("ring, radii 3 and 7 px", (7, 7), 3 / 7),
    Shape("ring, radii 6 and 12 px", (12, 12), 6 / 12),
    Shape("ellipse, radii 3 and 6 px", (3, 6)),
    Shape("ellipse, radii 3 and 12 px", (3, 12)),
    Shape("ellipse, radii 5 and 8 px", (5, 8)),
)
PLACES = 200


def area_errors(shape: Shape) -> NDArray[np.float64]:
    """Relative errors of the smooth contours' area, each at another place of the pixel."""
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(PLACES):
        covered = shape.covered(rng)
        found = StructureMap(_structure("Shape"), (0, 0, 0), covered, 0.5, None, ())
        contours = trace(found, _planes(covered.shape, (1, 1, 1)), "smooth", SIMPLIFY_MM)
        areas.append(sum(signed_area(contour.points) for contour in contours))
    return np.array(areas) / shape.area - 1


SHAPE_HEADINGS = ("partial-volume map", "places", "mean area error", "largest area error")


def shape_rows() -> Iterator[tuple[str, ...]]:
    """A line a shape whose area is known."""
    for shape in SHAPES:
        errors = area_errors(shape)
        yield shape.name, str(PLACES), f"{errors.mean():+.2%}", f"{np.abs(errors).max():.2%}"


def tables(folder: Path) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, headings and lines of each table."""
    yield "Smooth contours of shapes whose area is known", SHAPE_HEADINGS, list(shape_rows())
    for name, by_organ in measure(folder).items():
        yield name[0].upper() + name[1:], HEADINGS, list(rows(by_organ))


def show(title: str, headings: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    """Print a table for a person."""
    table = Table(*headings, title=title, title_justify="left")
    for line in lines:
        table.add_row(*line)
    Console(width=140).print(table)


def as_markdown(title: str, headings: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """The same for a document."""
    above = [f"### {title}", "", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return "\n".join([*above, *(f"| {' | '.join(line)} |" for line in lines), ""])


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["--markdown"]):
        sys.exit("usage: python -m benchmarks.contours DIR [--markdown]")
    for table in tables(Path(sys.argv[1])):
        if sys.argv[2:]:
            print(as_markdown(*table))
        else:
            show(*table)
