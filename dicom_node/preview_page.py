"""A preview as one HTML page, for a physicist's browser.

Owns the page: the CT as inline pictures, the contours as lines above them that can be switched off.
Speaks `Preview` in, text out; the page needs nothing but itself, runs no script, and is light or dark.
Never shows who the patient is: whoever has the page finds the CT by its series UID.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from html import escape

from dicom_node.preview import (
    DISCLAIMER,
    NOT_FOR_DIAGNOSIS,
    TITLE,
    WINDOW_IN_WORDS,
    CloseUp,
    Line,
    Preview,
)
from dicom_node.preview_sheets import grey_png
from dicom_node.views import View

_STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1a1f27; --quiet: #5b6573;
  --line: #d8dde5; --warning: #9a4b00; --warning-ground: #fff1dd; }
@media (prefers-color-scheme: dark) { :root { --ground: #0e1116; --card: #171b22; --ink: #e9edf2;
  --quiet: #98a2b3; --line: #2b323d; --warning: #ffb84d; --warning-ground: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1460px; padding: 16px; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: 4px 24px; justify-content: space-between; }
h1 { font-size: 22px; margin: 0; font-weight: 600; }
h2 { font-size: 18px; margin: 0 0 4px; font-weight: 600; }
.no { color: var(--warning); font-weight: 600; }
.warnings { background: var(--warning-ground); color: var(--warning); border-radius: 8px; padding: 10px 14px;
  margin: 12px 0 0; list-style: none; font-size: 16px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px;
  margin-top: 14px; break-inside: avoid; }
.views { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 10px; }
.structure { display: grid; grid-template-columns: 230px minmax(0, 1fr); gap: 14px; }
@media (max-width: 900px) { .structure { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; }
figcaption { color: var(--quiet); font-size: 13px; }
svg { display: block; width: 100%; height: auto; background: #000; border-radius: 4px; }
svg text { fill: #e9edf2; stroke: #000; stroke-width: 3px; paint-order: stroke;
  font: 15px system-ui, sans-serif; }
svg .mark { stroke: #96a0ae; fill: none; }
svg .scale { stroke: #e9edf2; stroke-width: 2px; }
svg path { fill: none; stroke: var(--color); stroke-width: 1.2px; vector-effect: non-scaling-stroke; }
svg path.own { fill: var(--color); fill-opacity: .18; fill-rule: evenodd; stroke-width: 2px; }
svg path:hover { stroke-width: 3px; }
table { border-collapse: collapse; width: 100%; }
th:first-child { width: 240px; }
th { text-align: left; color: var(--quiet); font-weight: 400; font-size: 13px; }
th, td { padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; width: 110px; padding-right: 24px; }
.swatch { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 8px; }
.odd { color: var(--warning); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 16px; margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.structure dl { font-size: 14px; }
footer { color: var(--quiet); margin: 16px 0; }
"""


def html(preview: Preview) -> str:
    """The page."""
    return "\n".join(_page(preview))


def _page(preview: Preview) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    # The browser itself sees to it that nothing is fetched and nothing runs.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>AnatomyNode: {TITLE.lower()}</title>\n<style>{_STYLE}{_switches(preview)}</style>\n</head>"
    yield f"<body>\n<header><h1>AnatomyNode · {TITLE}</h1>"
    yield f'<span class="no">{NOT_FOR_DIAGNOSIS}</span></header>'
    if preview.warnings:
        told = "".join(f"<li>{escape(warning)}</li>" for warning in preview.warnings)
        yield f'<ul class="warnings">{told}</ul>'
    yield f'<section class="views">{"".join(_figure(view, preview) for view in preview.overview)}</section>'
    yield from _legend(preview.lines)
    for one in preview.close_ups:
        yield from _close_up(one, preview)
    facts = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>"
        for label, value in (*preview.facts, *preview.uids)
    )
    yield f"<section><dl>{facts}</dl></section>"
    yield (
        f"<footer><p>{DISCLAIMER}</p><p>Confidence is the Dice to be expected. Lines in axial views are the "
        "contours of the structure set, point by point. In coronal and sagittal views each contour is as "
        "thick as its slice: half the way to either neighbour. Small marks at a view's edges show where the "
        f"other two planes cut it. The CT has {WINDOW_IN_WORDS}.</p><p>The page names no patient, so that it "
        "may lie with the commissioning records; its CT is found by the series UID.</p></footer>\n"
        "</body>\n</html>"
    )


def _switches(preview: Preview) -> str:
    """A structure whose box is not ticked is not drawn."""
    numbers = [roi.number for roi in preview.rois]
    return "".join(f"body:has(#show{n}:not(:checked)) .roi{n} {{ display: none; }}\n" for n in numbers)


def _legend(lines: tuple[Line, ...]) -> Iterator[str]:
    yield (
        '<section><table><thead><tr><th>structure</th><th class="number">volume</th>'
        '<th class="number">contours</th><th class="number">confidence</th>'
        "<th>what to look at</th></tr></thead><tbody>"
    )
    for line in lines:
        confidence = "" if line.confidence is None else f"{line.confidence:.2f}"
        yield (
            f"<tr{'' if line.is_drawn else ' class=odd'}><td>{_switch(line)}</td>"
            f'<td class="number">{line.volume}</td><td class="number">{line.contours or ""}</td>'
            f'<td class="number">{confidence}</td><td class="odd">{escape(line.remarks)}</td></tr>'
        )
    yield "</tbody></table></section>"


def _switch(line: Line) -> str:
    name = escape(line.name)
    if line.color is None:
        return name
    box = f'<input type="checkbox" id="show{line.number}" checked>'
    return f'<label>{box} <span class="swatch" style="background: {_rgb(line.color)}"></span>{name}</label>'


def _close_up(one: CloseUp, preview: Preview) -> Iterator[str]:
    swatch = f'<span class="swatch" style="background: {_rgb(one.roi.color)}"></span>'
    told = [("volume", one.line.volume), ("contours", str(one.line.contours))]
    if one.line.confidence is not None:
        told.append(("confidence", f"{one.line.confidence:.2f}"))
    facts = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in told)
    yield (
        f'<section class="structure"><div><h2>{swatch}{escape(one.line.name)}</h2><dl>{facts}</dl>'
        f'<p class="odd">{escape(one.line.remarks)}</p></div><div class="views">'
    )
    yield "".join(_figure(view, preview, one.roi.number) for view in one.views)
    yield "</div></section>"


def _figure(view: View, preview: Preview, only: int | None = None) -> str:
    """A view; `only` one ROI filled, or all."""
    width, height = view.size
    data = b64encode(grey_png(view, preview.series.volume)).decode("ascii")
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{view.name}, {view.place}">'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{data}"/>'
        f"{''.join(_paths(view, preview, only))}{''.join(_marks(view))}</svg>"
        f"<figcaption>{view.name}, {view.place}</figcaption></figure>"
    )


def _paths(view: View, preview: Preview, only: int | None) -> Iterator[str]:
    # The one that is looked at lies on top.
    for roi in sorted(preview.rois, key=lambda roi: roi.number == only):
        # The centre of pixel k lies at k + 0.5 in SVG.
        lines = [" ".join(f"{x:.2f},{y:.2f}" for x, y in line + 0.5) for line in view.outlines(roi)]
        if lines:
            own, color = " own" if only in (None, roi.number) else "", _rgb(roi.color)
            data = "".join(f"M{line}Z" for line in lines)
            yield (
                f'<path class="roi{roi.number}{own}" style="--color: {color}" d="{data}">'
                f"<title>{escape(roi.name)}</title></path>"
            )


def _marks(view: View) -> Iterator[str]:
    """Which way is which, where the companions cut the view, and a scale."""
    width, height = view.size
    x, y = view.pixels(view.through_mm[None])[0] + 0.5
    yield f'<path class="mark" d="M{x:.1f},0v9M{x:.1f},{height}v-9M0,{y:.1f}h9M{width},{y:.1f}h-9"/>'
    left, right, top, bottom = view.letters
    for at, letter, anchor in (
        ((14, height / 2 + 5), left, "start"),
        ((width - 14, height / 2 + 5), right, "end"),
        ((width / 2, 26), top, "middle"),
        ((width / 2, height - 14), bottom, "middle"),
    ):
        yield f'<text x="{at[0]:g}" y="{at[1]:g}" text-anchor="{anchor}">{letter}</text>'
    length = view.scale_mm / view.pixel_mm
    yield f'<path class="scale" d="M8,{height - 8}h{length:.1f}"/>'
    yield f'<text x="8" y="{height - 14}">{view.scale_mm} mm</text>'


def _rgb(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
