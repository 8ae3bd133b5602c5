"""What a benchmark says when the machine does not let it finish."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt

from benchmarks import contours, decoding, reception
from benchmarks.figures import NotMeasuredError


def test_contours_of_a_folder_of_masks_are_compared_by_two_readers(tmp_path: Path) -> None:
    at = np.mgrid[-10:10, -16:16, -16:16]
    ball = (np.sqrt((at**2).sum(axis=0)) < 9.3).astype(np.uint8)
    header = (
        "NRRD0005\ntype: uint8\ndimension: 3\nsizes: 32 32 20\n"
        "space directions: (1,0,0) (0,1,0) (0,0,2.5)\nencoding: gzip\n\n"
    )
    (tmp_path / "patient").mkdir()
    (tmp_path / "patient" / "Ball.nrrd").write_bytes(header.encode() + gzip.compress(ball.tobytes()))
    measured = contours.measure(tmp_path)
    (voxel,) = measured["voxel"]["Ball"]
    assert voxel.wrong == (0, 0)
    assert (voxel.dice, voxel.area) == (1.0, 0.0)
    assert voxel.cm3 == pytest.approx(ball.sum() * 2.5 / 1000)
    assert all(one.dice >= 0.97 for way in measured.values() for one in way["Ball"])
    line = next(iter(contours.rows(measured["voxel"])))
    assert "| Ball | 1 |" in contours.as_markdown("Voxel", contours.HEADINGS, [line])


def test_each_compressed_syntax_gives_back_the_very_hu_and_its_ratio() -> None:
    figures = {figure.name: figure for figure in decoding.measure(slices=1, matrix=64, rounds=1)}
    for name in decoding.SYNTAXES:
        assert figures[f"{name}: a slice"].value > 0
        assert 0 < figures[f"{name}: size"].value < 100
        ratio = figures[f"{name}: a slice"].value / figures["uncompressed: a slice"].value
        assert figures[f"{name}: longer than uncompressed by"].value == pytest.approx(ratio)


def test_a_receiver_that_ends_the_association_is_named_with_the_slice() -> None:
    ae = AE()
    ae.add_supported_context(CTImageStorage)

    def take_two(event: evt.Event) -> int:
        if event.request.AffectedSOPInstanceUID.endswith(".3"):
            event.assoc.abort()
        return 0x0000

    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take_two)])
    try:
        with pytest.raises(NotMeasuredError, match=r"bare: slice 3 of 178: no answer"):
            reception._send("bare", server.server_address[1], reception._series(0))
    finally:
        server.shutdown()
