"""How much longer a compressed slice takes to become HU than one that is not.

Owns the slices (the phantom's, with its noise, 512 x 512), their encoding by GDCM, and the ratios.
Speaks milliseconds of CPU in all threads of the process: what other programs do meanwhile counts less so.
Never compares what is not the same: each syntax has to give back the very HU, or nothing is measured.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import gdcm
import numpy as np

from benchmarks.figures import Figure, NotMeasuredError, at_least, main
from dicom_node.ct_slice import read_slice
from dicom_node.phantom import write_phantom

SLICES, MATRIX, ROUNDS = 8, 512, 7
_LEAST_A_SECOND = 20.0  # of one core: with two threads a series of 178 is decoded in 4.5 s, while it arrives

SYNTAXES: Mapping[str, gdcm.TransferSyntax] = {
    "RLE": gdcm.TransferSyntax.RLELossless,
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
}


def measure(slices: int = SLICES, matrix: int = MATRIX, rounds: int = ROUNDS) -> tuple[Figure, ...]:
    """Decode the same slices in each syntax, turn by turn.

    Raises:
        NotMeasuredError: GDCM cannot encode a slice, or it comes back with other HU.
    """
    with tempfile.TemporaryDirectory(prefix="anatomynode-bench-") as scratch:
        write_phantom(Path(scratch) / "ct", slices, matrix)
        files = sorted((Path(scratch) / "ct").iterdir())
        series = {"uncompressed": [file.read_bytes() for file in files]}
        for name, syntax in SYNTAXES.items():
            series[name] = [transcoded(file, syntax, Path(scratch) / "slice.dcm") for file in files]
    for name, encoded in series.items():
        for own, plain in zip(encoded, series["uncompressed"], strict=True):
            if not np.array_equal(read_slice(BytesIO(own)).hu, read_slice(BytesIO(plain)).hu):
                raise NotMeasuredError(f"{name} came back with other HU")
    taken: dict[str, list[float]] = {name: [] for name in series}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, encoded in series.items():
                taken[name].append(_cpu_ms(encoded))
    finally:
        gc.enable()
    return tuple(_figures(series, {name: statistics.median(each) for name, each in taken.items()}))


def transcoded(file: Path, syntax: int, scratch: Path) -> bytes:
    """A DICOM file in another transfer syntax, by GDCM.

    Args:
        scratch: a file that is written on the way.

    Raises:
        NotMeasuredError: GDCM cannot.
    """
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    if not reader.Read():
        raise NotMeasuredError(f"GDCM cannot read {file.name}")
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise NotMeasuredError(f"GDCM cannot encode {file.name}")
    writer.SetFileName(str(scratch))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise NotMeasuredError(f"GDCM cannot write {scratch.name}")
    return scratch.read_bytes()


def _cpu_ms(encoded: list[bytes]) -> float:
    """Of one slice."""
    start = time.process_time()
    for data in encoded:
        read_slice(BytesIO(data))
    return 1000 * (time.process_time() - start) / len(encoded)


def _figures(series: Mapping[str, list[bytes]], taken_ms: Mapping[str, float]) -> list[Figure]:
    plain_ms = taken_ms["uncompressed"]
    plain_bytes = sum(map(len, series["uncompressed"]))
    figures = [Figure("uncompressed: a slice", plain_ms, "ms")]
    for name in SYNTAXES:
        figures += [
            Figure(f"{name}: size", 100 * sum(map(len, series[name])) / plain_bytes, "%"),
            Figure(f"{name}: a slice", taken_ms[name], "ms"),
            Figure(f"{name}: longer than uncompressed by", taken_ms[name] / plain_ms, "times"),
        ]
    slowest = max(SYNTAXES, key=lambda name: taken_ms[name])
    a_second = 1000 / taken_ms[slowest]
    return [*figures, at_least(f"the slowest ({slowest}), a core", a_second, _LEAST_A_SECOND, "slices/s")]


if __name__ == "__main__":
    main("Decoding of compressed slices (512 x 512), CPU time", measure)
