"""A preview as pictures: an overview with the legend, then three structures a sheet.

Owns the sheets' layout, their letters, and the PNG of the whole; the door to Pillow.
Speaks `Preview` in; uint8 (height, width, 3) arrays and PNG files out.
Never shows a sheet without the words that it is not for diagnosis and not approved; no UID is burned in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_node.preview import (
    CLOSE_UP_SIZE,
    DISCLAIMER,
    NOT_FOR_DIAGNOSIS,
    OVERVIEW_SIZE,
    TITLE,
    WINDOW_HU,
    WINDOW_IN_WORDS,
    CloseUp,
    Line,
    Preview,
)
from dicom_node.views import View
from inference.volume import Volume

SHEET_SIZE = (1440, 1080)
"""Width and height: a viewer's window shows a whole sheet, its letters still readable."""
CLOSE_UPS_A_SHEET = 3

_SCALE = 2
"""Everything is drawn this much larger and then reduced, which smooths lines and letters."""
_MARGIN, _HEAD, _FOOT = 16, 64, 40
_FILL = 0.20
_CONFIDENCE = "confidence: the Dice to be expected"
_WHITEST = 235
_BACKGROUND, _PANEL, _INK, _MUTED = (14, 17, 22), (0, 0, 0), (233, 237, 242), (150, 158, 170)
_WARNING = (255, 184, 77)

Sheet = NDArray[np.uint8]
Color = tuple[int, int, int]


def sheets(preview: Preview) -> list[Sheet]:
    """Every sheet, each of `SHEET_SIZE`: the overview first."""
    some = [
        preview.close_ups[start : start + CLOSE_UPS_A_SHEET]
        for start in range(0, len(preview.close_ups), CLOSE_UPS_A_SHEET)
    ]
    count = 1 + len(some)
    drawn = [_overview(preview, count)]
    drawn += [_close_ups(preview, few, number, count) for number, few in enumerate(some, start=2)]
    return drawn


def overview_corner(place: int) -> tuple[int, int]:
    """The first pixel (x, y) of one of the overview's views on its sheet."""
    return _MARGIN + place * (OVERVIEW_SIZE[0] + _MARGIN), _HEAD


def text_sheet(title: str, warning: str, paragraphs: Sequence[str]) -> Sheet:
    """A sheet of words alone."""
    page = _Page(title, 1, 1)
    left, width = 6 * _MARGIN, SHEET_SIZE[0] - 12 * _MARGIN
    y = page.text((left, _HEAD + 90), warning, 44, _WARNING, width) + 36
    for paragraph in paragraphs:
        y = page.text((left, y), paragraph, 29, _INK, width) + 28
    return page.finished()


def png(preview: Preview) -> bytes:
    """All sheets below each other, as a PNG file."""
    return _encoded(Image.fromarray(np.concatenate(sheets(preview))))


def grey_png(view: View, volume: Volume) -> bytes:
    """The CT in a view, as a PNG file."""
    return _encoded(Image.fromarray(_grey(view, volume)))


def _encoded(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, format="PNG", compress_level=4)
    return file.getvalue()


class _Page:
    """One sheet while it is drawn; all coordinates are those of the finished sheet."""

    def __init__(self, title: str, number: int, count: int) -> None:
        width, height = SHEET_SIZE
        self._image = Image.new("RGB", (width * _SCALE, height * _SCALE), _BACKGROUND)
        self._pen = ImageDraw.Draw(self._image)
        self.word((_MARGIN, _HEAD // 2), f"AnatomyNode · {title}", 24, _INK, "lm")
        self.word((width - _MARGIN, _HEAD // 2), NOT_FOR_DIAGNOSIS, 24, _WARNING, "rm")
        self.word((_MARGIN, height - _FOOT // 2), DISCLAIMER, 16, _MUTED, "lm")
        self.word((width - _MARGIN, height - _FOOT // 2), f"sheet {number} of {count}", 16, _MUTED, "rm")

    def finished(self) -> Sheet:
        """The sheet at its own size."""
        return np.asarray(self._image.resize(SHEET_SIZE, Image.Resampling.BOX), np.uint8)

    def word(
        self, place: tuple[float, float], text: str, points: int, color: Color = _INK, anchor: str = "lm"
    ) -> None:
        """One line of text, by Pillow's anchors."""
        self._pen.text(_larger(place), text, color, _font(points), anchor)

    def text(self, place: tuple[float, float], text: str, points: int, color: Color, width: float) -> float:
        """Lines of at most `width` from a top left corner on; the y below the last."""
        x, y = place
        for line in _wrapped(text, points, width):
            self.word((x, y), line, points, color, "lt")
            y += points * 1.4
        return y

    def swatch(self, place: tuple[float, float], color: Color) -> None:
        """A small square around a point."""
        (left, top), (right, bottom) = (_larger((place[0] + by, place[1] + by)) for by in (-8, 8))
        self._pen.rounded_rectangle((left, top, right, bottom), 3 * _SCALE, color)

    def view(self, corner: tuple[int, int], view: View, preview: Preview, only: int | None = None) -> None:
        """A view with its contours, letters and scale; `only` one ROI filled, or all."""
        picture = _colored(view, preview, only)
        _annotate(picture, view)
        self._image.paste(picture, (corner[0] * _SCALE, corner[1] * _SCALE))


def _overview(preview: Preview, count: int) -> Sheet:
    page = _Page(TITLE, 1, count)
    for place, view in enumerate(preview.overview):
        page.view(overview_corner(place), view, preview)
    y: float = _HEAD + OVERVIEW_SIZE[1] + 16
    whole = SHEET_SIZE[0] - 2 * _MARGIN
    for warning in preview.warnings:
        y = page.text((_MARGIN, y), warning, 19, _WARNING, whole) + 4
    facts = " · ".join(
        (*(f"{label}: {value}" for label, value in preview.facts), WINDOW_IN_WORDS, _CONFIDENCE)
    )
    lines = _wrapped(facts, 14, whole)
    below = SHEET_SIZE[1] - _FOOT - 20 * len(lines)
    for place, line in enumerate(lines):
        page.word((_MARGIN, below + 20 * place), line, 14, _MUTED, "lt")
    _legend(page, preview.lines, y + 10, below - 8)
    return page.finished()


def _legend(page: _Page, lines: Sequence[Line], top: float, bottom: float) -> None:
    """Structures in as many columns as they need, not smaller than can be read."""
    columns = 1 if len(lines) * 27 <= bottom - top - 27 else 2
    a_column = -(-len(lines) // columns)
    step = min(30.0, (bottom - top - 27) / a_column)
    width = (SHEET_SIZE[0] - 2 * _MARGIN) / columns
    offsets = (28, 270, 370, 470, 500) if columns == 1 else (28, 230, 300, 380, 400)
    for column in range(columns):
        x, y = _MARGIN + column * width, top + 8
        headings = ("structure", "volume", "contours", "confidence", "what to look at")
        for offset, heading, anchor in zip(offsets, headings, "lrrrl", strict=True):
            page.word((x + offset, y), heading, 14, _MUTED, f"{anchor}m")
        for line in lines[column * a_column : (column + 1) * a_column]:
            y += step
            _legend_line(page, line, (x, y), offsets, width)


def _legend_line(
    page: _Page, line: Line, place: tuple[float, float], offsets: Sequence[int], width: float
) -> None:
    x, y = place
    if line.color is not None:
        page.swatch((x + 10, y), line.color)
    ink = _INK if line.is_drawn else _WARNING
    page.word((x + offsets[0], y), line.name, 17, ink)
    page.word((x + offsets[1], y), line.volume, 17, ink, "rm")
    if line.is_drawn:
        page.word((x + offsets[2], y), str(line.contours), 17, _INK, "rm")
    if line.confidence is not None:
        page.word((x + offsets[3], y), f"{line.confidence:.2f}", 17, _INK, "rm")
    remarks = _wrapped(line.remarks, 17, width - offsets[4] - 8)
    if remarks:
        page.word((x + offsets[4], y), remarks[0] + (" ..." if len(remarks) > 1 else ""), 17, _WARNING)


def _close_ups(preview: Preview, some: Sequence[CloseUp], number: int, count: int) -> Sheet:
    page = _Page(TITLE, number, count)
    width, height = CLOSE_UP_SIZE
    left = SHEET_SIZE[0] - 3 * (width + _MARGIN)
    for row, one in enumerate(some):
        top = _HEAD + row * (height + 8)
        page.swatch((_MARGIN + 8, top + 16), one.roi.color)
        page.word((_MARGIN + 28, top + 16), one.line.name, 24)
        y: float = top + 52
        for told in _told(one):
            y = page.text((_MARGIN, y), told, 17, _INK, left - 2 * _MARGIN) + 4
        page.text((_MARGIN, y + 6), one.line.remarks, 19, _WARNING, left - 2 * _MARGIN)
        for place, view in enumerate(one.views):
            page.view((left + place * (width + _MARGIN), top), view, preview, one.roi.number)
    return page.finished()


def _told(one: CloseUp) -> Iterator[str]:
    yield f"{one.line.volume} in {one.line.contours} contours"
    if one.line.confidence is not None:
        yield f"confidence {one.line.confidence:.2f}"
    for view in one.views:
        yield f"{view.name.lower()}: {view.place}"


def _grey(view: View, volume: Volume) -> NDArray[np.uint8]:
    low, high = WINDOW_HU
    share = np.clip((view.hu(volume) - low) / (high - low), 0, 1)
    return np.asarray(np.rint(share * _WHITEST), np.uint8)


def _colored(view: View, preview: Preview, only: int | None) -> Image.Image:
    """The CT, the structures filled faintly and outlined; enlarged."""
    size = (view.size[0] * _SCALE, view.size[1] * _SCALE)
    grey = Image.fromarray(_grey(view, preview.series.volume)).resize(size, Image.Resampling.BICUBIC)
    picture = grey.convert("RGB")
    for roi in preview.rois:
        if only in (None, roi.number):
            inside = Image.fromarray(np.asarray(view.share(roi) >= 0.5).astype(np.uint8) * round(255 * _FILL))
            picture.paste(roi.color, (0, 0), inside.resize(size, Image.Resampling.NEAREST))
    pen = ImageDraw.Draw(picture)
    # The one that is looked at lies on top.
    for roi in sorted(preview.rois, key=lambda roi: roi.number == only):
        for line in view.outlines(roi):
            closed = np.concatenate((line, line[:1]))
            # The centre of pixel k lies at (k + 0.5) * scale - 0.5 of the enlarged picture.
            points = ((closed + 0.5) * _SCALE - 0.5).ravel().tolist()
            pen.line(
                points, roi.color, round(1.7 * _SCALE) if only in (None, roi.number) else _SCALE, "curve"
            )
    return picture


def _annotate(picture: Image.Image, view: View) -> None:
    """The view's name, which way is which, where its companions cut it, and a scale."""
    pen, (width, height), edge = ImageDraw.Draw(picture), picture.size, 7 * _SCALE

    def write(place: tuple[float, float], text: str, points: int, anchor: str) -> None:
        pen.text(place, text, _INK, _font(points), anchor, stroke_width=2 * _SCALE, stroke_fill=_PANEL)

    x, y = (view.pixels(view.through_mm[None])[0] + 0.5) * _SCALE
    tick = 10 * _SCALE
    for ends in (
        (x, 0, x, tick),
        (x, height - tick, x, height),
        (0, y, tick, y),
        (width - tick, y, width, y),
    ):
        pen.line(ends, _MUTED, _SCALE)
    left, right, top, bottom = view.letters
    write((2 * edge, height / 2), left, 17, "lm")
    write((width - 2 * edge, height / 2), right, 17, "rm")
    write((width / 2, 2 * edge), top, 17, "mt")
    write((width / 2, height - 2 * edge), bottom, 17, "mb")
    write((edge, edge), view.name, 15, "lt")
    length = view.scale_mm / view.pixel_mm * _SCALE
    pen.line((edge, height - edge, edge + length, height - edge), _INK, 2 * _SCALE)
    write((edge, height - edge - 4 * _SCALE), f"{view.scale_mm} mm", 13, "lb")


def _wrapped(text: str, points: int, width: float) -> list[str]:
    """Words in lines of at most `width`."""
    font, lines = _font(points), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width * _SCALE:
            lines.append(word)
        else:
            lines[-1] = longer
    return [line for line in lines if line]


def _larger(place: tuple[float, float]) -> tuple[float, float]:
    return place[0] * _SCALE, place[1] * _SCALE


def _font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own face, so that the picture looks alike on every machine."""
    return ImageFont.load_default(points * _SCALE)
