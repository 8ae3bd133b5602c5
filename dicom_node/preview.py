"""A picture of the contours on the CT, for a person to look at.

Owns the page: an axial, a coronal and a sagittal panel in millimetres, and the legend.
Speaks `CtSeries` and `Segmentation` in, a PNG out; soft-tissue window, structures in their own colours.
Never shows who the patient is, and never leaves out that this is no medical device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_node.ct_series import CtSeries
from inference.postprocessing import volume_cm3
from inference.segmentation import Segmentation, StructureMap
from inference.volume import PlaneStack

TITLE = "AnatomyNode · automatic contours, unapproved"
DISCLAIMER = "Not a medical device. Every contour must be reviewed by a qualified person before any use."

_WINDOW_HU = (-160.0, 240.0)
_BODY_HU = -300
_AROUND_MM = 45.0
"""How much of the patient the upright panels show around the structures."""
_BORDER_MM = 8.0
"""Air around the body."""
_SUPERSAMPLING = 3
"""Everything is drawn this much larger and then reduced, which smooths lines and letters."""
_PANELS_WIDTH = 1380
_MAX_PIXELS_PER_MM = 2.6
_GUTTER = 18
_HEAD, _FOOT, _LEGEND = 62, 44, 250
_FILL = 0.22
_BACKGROUND, _INK, _MUTED = (14, 17, 22), (233, 237, 242), (140, 148, 160)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Upright:
    """How the array is turned so that its axes run to superior, posterior and the patient's left.

    Attributes:
        order: which array axis becomes the first, second and third.
        flipped: whether each of them runs the other way.
        at_mm: three increasing arrays: positions along each upright axis.
    """

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    at_mm: tuple[Floats, Floats, Floats]

    @classmethod
    def of(cls, planes: PlaneStack) -> _Upright:
        """By the patient axis that each array axis is nearest to; a gantry tilt is not undone."""
        axes = np.stack((planes.normal, planes.column_direction, planes.row_direction))
        order = (0, 1, 2) if abs(axes[1][1]) >= abs(axes[2][1]) else (0, 2, 1)
        flipped = [bool(axes[axis][lps] < 0) for axis, lps in zip(order, (2, 1, 0), strict=True)]
        positions: tuple[Floats, Floats, Floats] = (
            planes.offsets_mm,
            np.arange(planes.rows, dtype=np.float64) * planes.row_spacing_mm,
            np.arange(planes.columns, dtype=np.float64) * planes.column_spacing_mm,
        )
        turned = [
            (-positions[axis][::-1] if flip else positions[axis])
            for axis, flip in zip(order, flipped, strict=True)
        ]
        return cls(order, (flipped[0], flipped[1], flipped[2]), (turned[0], turned[1], turned[2]))

    def view(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array with upright axes; no copy."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        turned: NDArray[Any] = array.transpose(self.order)[steps]
        return turned

    def start(self, found: StructureMap) -> tuple[int, ...]:
        """Upright index of the first voxel of a structure's box."""
        extents = [len(positions) for positions in self.at_mm]
        return tuple(
            extents[place] - found.start[axis] - found.probability.shape[axis] if flip else found.start[axis]
            for place, (axis, flip) in enumerate(zip(self.order, self.flipped, strict=True))
        )


@dataclass(frozen=True)
class _Panel:
    """One plane through the patient.

    Attributes:
        axis, index: the upright axis that is held, and where.
        down, across: half-open index ranges of the other two axes that are shown.
        head_up: whether the image is turned upside down, for superior to be at the top.
        letters: left, right, top and bottom.
    """

    name: str
    axis: int
    index: int
    down: tuple[int, int]
    across: tuple[int, int]
    letters: tuple[str, str, str, str]

    @property
    def head_up(self) -> bool:
        """Axial slices are seen from the feet, posterior down; the others with the head up."""
        return self.axis != 0

    @property
    def axes(self) -> tuple[int, int]:
        """The upright axes that run down and across the image."""
        down, across = (axis for axis in range(3) if axis != self.axis)
        return down, across

    def extent_mm(self, upright: _Upright) -> tuple[float, float]:
        """Height and width, from the first to the last voxel centre."""
        down, across = (upright.at_mm[axis] for axis in self.axes)
        return (
            float(down[self.down[1] - 1] - down[self.down[0]]),
            float(across[self.across[1] - 1] - across[self.across[0]]),
        )


def draw(series: CtSeries, segmentation: Segmentation, file: Path) -> None:
    """Write the picture as PNG: panels through the middle of what was found, and a legend with volumes.

    Raises:
        OSError: the file cannot be written.
    """
    upright = _Upright.of(series.volume.planes)
    hu = upright.view(series.volume.hu)
    found = [one for one in segmentation.structures if one.probability.size and one.mask.any()]
    panels = _panels(upright, hu, found)
    page = _page(upright, hu, panels, found)
    _legend(page, segmentation, series.volume.planes)
    width, height = page.size
    reduced = page.resize((width // _SUPERSAMPLING, height // _SUPERSAMPLING), Image.Resampling.LANCZOS)
    reduced.save(file, format="PNG")


def _panels(upright: _Upright, hu: NDArray[np.int16], found: Sequence[StructureMap]) -> list[_Panel]:
    """Axial, coronal and sagittal, each where most of the structures are cut widest."""
    indices = [_fullest(upright, found, axis) for axis in range(3)]
    near = [_around(upright, found, axis) for axis in range(3)]
    body = hu > _BODY_HU
    at_slice = body[indices[0]]
    in_reach = body[near[0][0] : near[0][1]]
    margin = _BORDER_MM
    axial = (
        _range(upright.at_mm[1], np.flatnonzero(at_slice.any(axis=1)), margin),
        _range(upright.at_mm[2], np.flatnonzero(at_slice.any(axis=0)), margin),
    )
    posterior = _common(near[1], _range(upright.at_mm[1], np.flatnonzero(in_reach.any(axis=(0, 2))), margin))
    left = _common(near[2], _range(upright.at_mm[2], np.flatnonzero(in_reach.any(axis=(0, 1))), margin))
    return [
        _Panel("Axial", 0, indices[0], *axial, ("R", "L", "A", "P")),
        _Panel("Coronal", 1, indices[1], near[0], left, ("R", "L", "S", "I")),
        _Panel("Sagittal", 2, indices[2], near[0], posterior, ("A", "P", "S", "I")),
    ]


def _fullest(upright: _Upright, found: Sequence[StructureMap], axis: int) -> int:
    """The index along an axis at which the structures, each by its own largest cut, add up to most."""
    total = np.zeros(len(upright.at_mm[axis]))
    for one in found:
        others = tuple(other for other in range(3) if other != axis)
        areas = upright.view(one.mask).sum(axis=others)
        start = upright.start(one)[axis]
        total[start : start + len(areas)] += areas / areas.max()
    return int(total.argmax()) if found else len(total) // 2


def _around(upright: _Upright, found: Sequence[StructureMap], axis: int) -> tuple[int, int]:
    """The indices around the structures that are shown along an axis; all where there are none."""
    others = tuple(other for other in range(3) if other != axis)
    inside = [
        np.flatnonzero(upright.view(one.mask).any(axis=others)) + upright.start(one)[axis] for one in found
    ]
    return _range(upright.at_mm[axis], np.concatenate(inside) if inside else np.empty(0, int), _AROUND_MM)


def _common(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """What two index ranges share; the first where that is less than two."""
    start, end = max(first[0], second[0]), min(first[1], second[1])
    return (start, end) if end - start > 1 else first


def _range(at_mm: Floats, indices: NDArray[np.intp], margin_mm: float) -> tuple[int, int]:
    """Half-open range around the indices, wider by a margin; everything where there are none."""
    if not len(indices):
        return 0, len(at_mm)
    first, last = at_mm[indices.min()] - margin_mm, at_mm[indices.max()] + margin_mm
    return int(np.searchsorted(at_mm, first)), max(int(np.searchsorted(at_mm, last, side="right")), 2)


def _page(
    upright: _Upright, hu: NDArray[np.int16], panels: Sequence[_Panel], found: Sequence[StructureMap]
) -> Image.Image:
    """The page with title, panels side by side on one scale, and the sentence at the foot."""
    extents = [panel.extent_mm(upright) for panel in panels]
    per_mm = min(_MAX_PIXELS_PER_MM, _PANELS_WIDTH / sum(width for _, width in extents)) * _SUPERSAMPLING
    sizes = [(max(int(height * per_mm), 1), max(int(width * per_mm), 1)) for height, width in extents]
    tallest = max(height for height, _ in sizes)
    gutter, head, foot, legend = (value * _SUPERSAMPLING for value in (_GUTTER, _HEAD, _FOOT, _LEGEND))
    tallest = max(tallest, 300 * _SUPERSAMPLING)
    page = Image.new(
        "RGB", (sum(width for _, width in sizes) + 4 * gutter + legend, head + tallest + foot), _BACKGROUND
    )
    left = gutter
    for panel, (height, width) in zip(panels, sizes, strict=True):
        top = head + (tallest - height) // 2
        page.paste(_drawn(upright, hu, panel, found, (height, width), per_mm), (left, top))
        left += width + gutter
    pen = ImageDraw.Draw(page)
    pen.text((gutter, head // 2), TITLE, _INK, _font(21), anchor="lm")
    pen.text((gutter, page.height - foot // 2), DISCLAIMER, _MUTED, _font(14), anchor="lm")
    return page


def _drawn(
    upright: _Upright,
    hu: NDArray[np.int16],
    panel: _Panel,
    found: Sequence[StructureMap],
    size: tuple[int, int],
    per_mm: float,
) -> Image.Image:
    """One panel: the CT, the structures filled faintly and outlined, letters and a scale."""
    down_axis, across_axis = panel.axes
    down = _pixel_indices(upright.at_mm[down_axis], panel.down, size[0], per_mm)
    across = _pixel_indices(upright.at_mm[across_axis], panel.across, size[1], per_mm)
    plane = np.asarray(np.take(hu, panel.index, axis=panel.axis), np.float64)
    grey = _interpolated(plane, down, across)
    grey = np.clip((grey - _WINDOW_HU[0]) / (_WINDOW_HU[1] - _WINDOW_HU[0]), 0, 1) * 235
    colours = np.repeat(grey[..., None], 3, axis=2)
    cuts = [(one, _cut(upright, panel, one)) for one in found]
    for one, (cut, start) in cuts:
        if cut.size:
            inside = _interpolated(cut, down - start[0], across - start[1]) >= one.threshold
            colours[inside] += _FILL * (np.array(one.structure.color) - colours[inside])
    image = Image.fromarray(colours.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for one, (cut, start) in cuts:
        for line in contour_generator(z=cut).lines(one.threshold) if cut.size else []:
            points = np.asarray(line, np.float64)
            x = np.interp(points[:, 0] + start[1], across, np.arange(size[1]))
            y = np.interp(points[:, 1] + start[0], down, np.arange(size[0]))
            pen.line(np.column_stack((x, y)).ravel().tolist(), one.structure.color, 5, joint="curve")
    if panel.head_up:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    _annotate(image, panel, per_mm)
    return image


def _cut(upright: _Upright, panel: _Panel, one: StructureMap) -> tuple[Floats, tuple[int, int]]:
    """The structure's probabilities in the panel's plane, with a border of zeros, and their first index."""
    start = upright.start(one)
    probability = upright.view(one.probability)
    inside = panel.index - start[panel.axis]
    if not 0 <= inside < probability.shape[panel.axis]:
        return np.empty((0, 0)), (0, 0)
    cut = np.pad(probability.take(inside, axis=panel.axis).astype(np.float64), 1)
    down, across = panel.axes
    return cut, (start[down] - 1, start[across] - 1)


def _pixel_indices(at_mm: Floats, shown: tuple[int, int], count: int, per_mm: float) -> Floats:
    """The fractional voxel index at each of `count` pixels."""
    pixels_mm = at_mm[shown[0]] + np.arange(count) / per_mm
    indices: Floats = np.interp(pixels_mm, at_mm, np.arange(len(at_mm)))
    return indices


def _interpolated(image: Floats, down: Floats, across: Floats) -> Floats:
    """Linear between voxel centres; zero outside."""
    for axis, at in enumerate((down, across)):
        last = image.shape[axis] - 1
        lower = np.clip(np.floor(at), 0, max(last - 1, 0)).astype(int)
        shape = (-1, 1) if axis == 0 else (1, -1)
        share = np.clip(at - lower, 0, 1).reshape(shape)
        outside = ((at < 0) | (at > last)).reshape(shape)
        mixed = image.take(lower, axis) * (1 - share)
        mixed += image.take(np.minimum(lower + 1, last), axis) * share
        image = np.where(outside, 0.0, mixed)
    return image


def _annotate(image: Image.Image, panel: _Panel, per_mm: float) -> None:
    """The panel's name, where left and head are, and 50 mm."""
    pen, (width, height), edge = ImageDraw.Draw(image), image.size, 8 * _SUPERSAMPLING
    left, right, top, bottom = panel.letters
    small, halo = _font(14), 2 * _SUPERSAMPLING
    for place, letter, anchor in (
        ((edge, height // 2), left, "lm"),
        ((width - edge, height // 2), right, "rm"),
        ((width // 2, edge), top, "mt"),
        ((width // 2, height - edge), bottom, "mb"),
    ):
        pen.text(place, letter, _INK, small, anchor, stroke_width=halo, stroke_fill=_BACKGROUND)
    pen.text((edge, edge), panel.name, _INK, _font(16), "lt", stroke_width=halo, stroke_fill=_BACKGROUND)
    y, scale = height - edge, int(50 * per_mm)
    pen.line((edge, y, edge + scale, y), _INK, 2 * _SUPERSAMPLING)
    pen.text(
        (edge, y - edge // 2), "50 mm", _INK, _font(12), "lb", stroke_width=halo, stroke_fill=_BACKGROUND
    )


def _legend(page: Image.Image, segmentation: Segmentation, planes: PlaneStack) -> None:
    """A line a structure: colour, name, volume; what was not found, and what is flagged, in words."""
    pen, unit = ImageDraw.Draw(page), _SUPERSAMPLING
    left, y = page.width - (_LEGEND - _GUTTER // 2) * unit, (_HEAD + 14) * unit
    for one in segmentation.structures:
        volume = volume_cm3(one, planes)
        pen.rounded_rectangle(
            (left, y - 7 * unit, left + 14 * unit, y + 7 * unit), 3 * unit, one.structure.color
        )
        pen.text((left + 24 * unit, y), one.structure.name, _INK, _font(15), anchor="lm")
        told = f"{volume:.1f} cm3" if volume else "not found"
        pen.text((page.width - _GUTTER * unit, y), told, _INK if volume else _MUTED, _font(15), anchor="rm")
        words = [flag.replace("_", " ") for flag in one.flags if flag != "not_found"]
        for word in words:
            y += 18 * unit
            pen.text((left + 24 * unit, y), word, _MUTED, _font(12), anchor="lm")
        y += 30 * unit


def _font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own face, so that the picture looks alike on every machine."""
    return ImageFont.load_default(points * _SUPERSAMPLING)
