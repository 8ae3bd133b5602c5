"""Slices to scroll through: contours where they are written, upright, drawn by another process and kept."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from dicom_node import book_shelf, slice_book
from dicom_node.book_shelf import BusyError, NoBookError, Shelf
from dicom_node.preview import WINDOW_HU
from dicom_node.received import read_rois
from tests import phantoms
from tests.dicom_node.test_preview import GEOMETRIES, shown
from tests.worker_node import Node, make_node

__all__ = ["make_node"]


@pytest.mark.parametrize("geometry", ["HFS", "HFP", "FFS", "HFDR", "FFDL", "tilted gantry", "oblong pixels"])
def test_pictures_and_outlines_lie_where_the_ct_and_the_contours_do_and_upright(geometry: str) -> None:
    series = phantoms.series(GEOMETRIES[geometry])
    _, _, data = shown(series)
    planes, (lower, upper) = series.volume.planes, WINDOW_HU
    packed = zipfile.ZipFile(BytesIO(slice_book.book(series, data)))
    told = json.loads(packed.read("book.json"))
    rois = read_rois(dcmread(BytesIO(data)), series)
    window = slice_book._window(planes, rois)

    heights = [planes.origins_mm[one["number"] - 1][2] for one in told["slices"]]
    assert heights == sorted(heights, reverse=True), "heads first"
    for one in told["slices"][::3]:
        index = one["number"] - 1
        for roi in rois:
            points = _points(one["outlines"].get(str(roi.number), ""))
            written = np.concatenate([np.zeros((0, 2)), *roi.rings.get(index, ())])
            assert len(points) == len(written)
            if len(points):
                where_mm = planes.plane_points_mm(index, written)
                right, down = np.ptp(points, axis=0)
                # To the right in the picture is to the patient's left, down is to his back.
                assert np.corrcoef(points[:, 0], where_mm[:, 0])[0, 1] > 0.95 or right < 1
                assert np.corrcoef(points[:, 1], where_mm[:, 1])[0, 1] > 0.95 or down < 1
                assert abs(np.ptp(where_mm[:, 0]) - right) < 0.2
        picture = np.asarray(Image.open(BytesIO(packed.read(f"{one['number']}.jpg")))).astype(float)
        rows, columns = np.mgrid[window.low[0] : window.high[0], window.low[1] : window.high[1]]
        places = window.points_mm(np.stack((rows.ravel(), columns.ravel()), axis=1).astype(float))
        x, y = (places / told["size_mm"] * picture.shape[::-1]).astype(int).T
        hu = series.volume.hu[index][rows.ravel(), columns.ravel()]
        grey = np.clip((hu - lower) / (upper - lower), 0, 1) * 255
        assert np.median(np.abs(picture[y, x] - grey)) < 6
        assert np.corrcoef(picture[y, x], grey)[0, 1] > 0.97


def _points(data: str) -> Any:
    numbers = data.replace("M", " ").replace("Z", " ").replace(",", " ").split()
    return np.array(numbers, float).reshape(-1, 2)


@pytest.fixture
def contoured(make_node: Callable[..., Node]) -> Node:
    node = make_node()
    node.receive()
    worker = node.worker()
    node.step(worker)
    node.now += 60
    node.step(worker)
    node.step(worker)
    assert node.job().rt_struct_file
    return node


def test_another_process_draws_a_book_once_and_says_why_it_cannot(
    contoured: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, sha256 = contoured.config.storage, str(contoured.job().rt_struct_sha256)
    shelf = Shelf(storage.folder)
    book = shelf.book(1, sha256)
    first = book.told["slices"][0]["number"]
    assert Image.open(BytesIO(book.picture(first) or b"")).format == "JPEG"
    assert book.picture(999) is None
    assert [roi["name"] for roi in book.told["rois"]] == ["Brainstem"]

    next(storage.spool.glob("*.dcm")).unlink()
    assert shelf.book(1, sha256) is book, "nothing is drawn twice"
    with pytest.raises(NoBookError, match="not in the storage folder any more"):
        shelf.book(1, "another result")
    with pytest.raises(NoBookError, match="there is no job 9"):
        shelf.book(9, "")
    monkeypatch.setattr(book_shelf, "MOST_SECONDS", 0.0)
    with pytest.raises(NoBookError, match="took more than"):
        shelf.book(1, "slow")


def test_one_book_at_a_time_is_drawn_and_the_oldest_make_room(
    contoured: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(contoured.config.storage.folder)
    monkeypatch.setattr(book_shelf, "WAIT_S", 0.01)
    monkeypatch.setattr(book_shelf, "MOST_BYTES", 250)
    drawn: list[int] = []

    def draw(folder: object, job: int) -> book_shelf.Book:
        if job == 1 and not drawn:
            with pytest.raises(BusyError):
                shelf.book(2, "")
        drawn.append(job)
        return book_shelf.Book({}, b"x" * 100)

    monkeypatch.setattr(book_shelf, "_draw", draw)
    for job in (1, 2, 1, 3, 1, 2):
        shelf.book(job, "")
    assert drawn == [1, 2, 3, 2]


def test_what_draws_gets_no_secret_and_its_own_words_stay_unread(
    contoured: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def run(command: object, **how: Any) -> subprocess.CompletedProcess[bytes]:
        seen.update(how)
        return subprocess.CompletedProcess([], 1, b"", b"Traceback: DOE^JANE")

    monkeypatch.setenv("ANATOMYNODE_HASH_KEY", "secret")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(NoBookError) as problem:
        Shelf(contoured.config.storage.folder).book(1, "")
    assert "DOE" not in problem.value.reason
    assert "ANATOMYNODE_HASH_KEY" not in seen["env"]
