"""Pictures of a patient with what was found and what was drawn.

Owns one page: an axial, a coronal and a sagittal plane in millimetres, and the legend.
Speaks a CT grid and masks on the archive's grid; LPS, soft-tissue window; a PNG out.
Never leaves the output folder: it shows a patient's anatomy, and belongs into no repository.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from models.anatomy import ANATOMY
from models.archives.openkbp_dicom import Grid

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

_WINDOW_HU = (-160, 240)
_MARGIN_MM = 35.0
_WIDTH_INCHES = 15.0
_HEAD_INCHES, _LEGEND_INCHES = 0.8, 1.1
_BACKGROUND, _INK = "#0e1116", "#e9edf2"


@dataclass(frozen=True)
class Outlined:
    """One structure: what was found, what was drawn, and what is said about it; masks may be empty."""

    structure: str
    found: Mask
    drawn: Mask
    words: str


@dataclass(frozen=True)
class _View:
    """A kind of plane: the axis that is held, those that run down and across, and where they lead."""

    name: str
    held: int
    down: int
    across: int
    letters: tuple[str, str, str, str]
    """Left, right, top, bottom."""


_VIEWS = (
    _View("axial", 0, 1, 2, ("R", "L", "A", "P")),
    _View("coronal", 1, 0, 2, ("R", "L", "H", "F")),
    _View("sagittal", 2, 0, 1, ("A", "P", "H", "F")),
)


def draw_overlay(path: Path, title: str, shown: Grid, native: Grid, structures: Sequence[Outlined]) -> None:
    """Draw a patient; nothing where no structure was found or drawn.

    Args:
        shown: the CT that was contoured.
        native: the grid of the masks.
    """
    either = {one.structure: one.found | one.drawn for one in structures}
    if not any(mask.any() for mask in either.values()):
        return
    box = _box(native, either.values())
    sizes_mm = [(_extent(box, view.down), _extent(box, view.across)) for view in _VIEWS]
    across_mm = sum(width for _, width in sizes_mm)
    tallest_mm = max(height for height, _ in sizes_mm)
    picture_inches = _WIDTH_INCHES * tallest_mm / across_mm
    figure = Figure(
        figsize=(_WIDTH_INCHES, picture_inches + _HEAD_INCHES + _LEGEND_INCHES), facecolor=_BACKGROUND
    )
    FigureCanvasAgg(figure)
    height = picture_inches + _HEAD_INCHES + _LEGEND_INCHES
    left = 0.0
    for view, (high_mm, wide_mm) in zip(_VIEWS, sizes_mm, strict=True):
        share = high_mm / tallest_mm * picture_inches / height
        bottom = (_LEGEND_INCHES + picture_inches) / height - share
        axes = figure.add_axes((left + 0.003, bottom, wide_mm / across_mm - 0.006, share))
        left += wide_mm / across_mm
        _draw(axes, view, shown, native, structures, either, box)
    figure.text(0.01, 1 - 0.4 * _HEAD_INCHES / height, title, color=_INK, fontsize=15, va="center")
    _legend(figure, structures)
    figure.savefig(path, dpi=100, facecolor=_BACKGROUND, metadata={"Software": None})


def _centres_mm(grid: Grid, axis: int) -> Floats:
    """LPS position of each voxel's centre along an array axis: z, y, x."""
    origin = grid.origin_mm[::-1][axis]
    return np.asarray(origin + np.arange(grid.hu.shape[axis]) * grid.spacing_mm[axis], np.float64)


def _box(native: Grid, masks: Iterable[Mask]) -> list[tuple[float, float]]:
    """Where the structures lie, in mm along each array axis, with a margin, within the CT that was kept.

    The outer hundredths of each structure do not count: a stray voxel would make everything else small.
    """
    ends = np.array([np.percentile(np.argwhere(mask), (1, 99), axis=0) for mask in masks if mask.any()])
    box = []
    for axis in range(3):
        centres, step = _centres_mm(native, axis), native.spacing_mm[axis]
        low, high = centres[0] + step * ends[:, 0, axis].min(), centres[0] + step * ends[:, 1, axis].max()
        first, last = centres[0] - step / 2, centres[-1] + step / 2
        box.append((max(low - _MARGIN_MM, first), min(high + _MARGIN_MM, last)))
    return box


def _extent(box: Sequence[tuple[float, float]], axis: int) -> float:
    return box[axis][1] - box[axis][0]


def _plane(held: int, masks: Mapping[str, Mask]) -> int:
    """The index of the plane that cuts most structures, each by its share of its own largest cut."""
    others = tuple({0, 1, 2} - {held})
    areas = np.array([mask.sum(axis=others) for mask in masks.values() if mask.any()])
    return int(np.argmax((areas / areas.max(axis=1, keepdims=True)).sum(axis=0)))


def _draw(
    axes: Axes,
    view: _View,
    shown: Grid,
    native: Grid,
    structures: Sequence[Outlined],
    either: Mapping[str, Mask],
    box: Sequence[tuple[float, float]],
) -> None:
    index = _plane(view.held, either)
    at_mm = _centres_mm(native, view.held)[index]
    nearest = int(np.abs(_centres_mm(shown, view.held) - at_mm).argmin())
    down, across = _centres_mm(shown, view.down), _centres_mm(shown, view.across)
    half_down, half_across = shown.spacing_mm[view.down] / 2, shown.spacing_mm[view.across] / 2
    axes.imshow(
        shown.hu.take(nearest, view.held),
        cmap="gray",
        vmin=_WINDOW_HU[0],
        vmax=_WINDOW_HU[1],
        extent=(across[0] - half_across, across[-1] + half_across, down[-1] + half_down, down[0] - half_down),
        interpolation="bilinear",
        aspect="equal",
    )
    for one in structures:
        color = [part / 255 for part in ANATOMY[one.structure].color]
        for mask, style, width in ((one.drawn, (0, (3, 1.6)), 1.5), (one.found, "solid", 1.9)):
            cut = mask.take(index, view.held)
            if cut.any():
                axes.contour(
                    *_padded_axes(native, view), np.pad(cut, 1).astype(float), levels=[0.5], colors=[color],
                    linewidths=width, linestyles=[style],
                )  # fmt: skip
    axes.set_xlim(*box[view.across])
    low, high = box[view.down]
    axes.set_ylim(*((high, low) if view.held == 0 else (low, high)))
    axes.set_axis_off()
    _annotate(axes, f"{view.name}, {'zyx'[view.held]} = {at_mm:.0f} mm", view.letters)


def _padded_axes(native: Grid, view: _View) -> tuple[Floats, Floats]:
    """Across and down positions with one more voxel at each end, so that a cut structure is closed."""
    return tuple(  # type: ignore[return-value]
        np.concatenate(([at[0] - step], at, [at[-1] + step]))
        for at, step in (
            (_centres_mm(native, axis), native.spacing_mm[axis]) for axis in (view.across, view.down)
        )
    )


def _annotate(axes: Axes, name: str, letters: tuple[str, str, str, str]) -> None:
    halo = [withStroke(linewidth=3, foreground=_BACKGROUND)]
    left, right, top, bottom = letters
    for x, y, text, across, down in (
        (0.01, 0.5, left, "left", "center"),
        (0.99, 0.5, right, "right", "center"),
        (0.5, 0.99, top, "center", "top"),
        (0.5, 0.01, bottom, "center", "bottom"),
        (0.01, 0.99, name, "left", "top"),
    ):
        written = axes.text(x, y, text, transform=axes.transAxes, ha=across, va=down)
        written.set(color=_INK, fontsize=11, path_effects=halo)


def _legend(figure: Figure, structures: Sequence[Outlined]) -> None:
    """What solid and dashed mean, and a line a structure with what is said about it."""
    handles = [
        Line2D([], [], color=_INK, linewidth=1.9, label="found"),
        Line2D([], [], color=_INK, linewidth=1.5, linestyle=(0, (3, 1.6)), label="drawn"),
    ]
    for one in structures:
        color = [part / 255 for part in ANATOMY[one.structure].color]
        handles.append(Line2D([], [], color=color, linewidth=6, label=f"{one.structure}  {one.words}"))
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=min(len(handles), 5),
        frameon=False,
        labelcolor=_INK,
        fontsize=10.5,
        handlelength=2.4,
    )
