"""Mask to RT Structure Set for nine structures at 512 x 512 x 178: this program beside rt-utils.

Owns the comparison: our time with reading back included, and fidelity by a reader of neither.
Speaks `Figure`; `python -m benchmarks.rt_struct` runs it alone.
Never lets a writer be judged by its own reader.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from rt_utils import RTStruct as RtUtilsStruct
from rt_utils import RTStructBuilder, ds_helper
from skimage.draw import polygon2mask

from benchmarks.figures import Figure, at_least, main
from dicom_node import rt_struct, rt_struct_check
from dicom_node.ct_series import CtSeries
from dicom_node.ct_slice import CtHeader
from inference.contours import ContourMode
from inference.segmentation import Segmentation, StructureMap
from inference.volume import PlaneStack, Volume
from models.card import Code, Structure
from tests import organs

SLICES, ROWS, COLUMNS = 178, 512, 512
PIXEL_MM, SLICE_MM = 0.98, 2.5
ROUNDS = 5


@dataclass(frozen=True)
class Organ:
    """An ellipsoid: centre and half axes as (slice, row, column) in mm from the first voxel."""

    name: str
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]


ORGANS = (
    Organ("Brainstem", (310, 260, 250), (30, 16, 17)),
    Organ("SpinalCord", (200, 290, 250), (150, 6, 7)),
    Organ("Parotid_L", (270, 260, 315), (32, 20, 13)),
    Organ("Parotid_R", (270, 260, 185), (32, 20, 13)),
    Organ("Bone_Mandible", (230, 190, 250), (35, 40, 55)),
    Organ("Glnd_Submand_L", (215, 220, 290), (17, 13, 10)),
    Organ("Glnd_Submand_R", (215, 220, 210), (17, 13, 10)),
    Organ("OpticNrv_L", (320, 180, 275), (4, 20, 4)),
    Organ("OpticNrv_R", (320, 180, 225), (4, 20, 4)),
)
"""Nine organs of a head and neck, each about as large as in a person; the mandible is a bowl."""


@dataclass(frozen=True)
class Seconds:
    """What a piece of work took.

    Attributes:
        wall: as a user waits.
        cpu: of all threads; the better judge on a machine that is busy with other things.
    """

    wall: float
    cpu: float


def measure() -> tuple[Figure, ...]:
    """Both writers on the same masks, alternating; medians.

    rt-utils is taken in three ways. As its documentation has it called, it reads the CT from a
    folder, pixels included, and writes a file: nobody can use it for less. On data sets that are
    in memory already, as ours are, it shows what the writing alone costs. And with masks read
    back it does as much as ours, which always reads back and checks what it wrote.
    """
    series, segmentation = _series(), _segmentation()
    masks = {found.structure.name: _whole(found) for found in segmentation.structures}
    slices = [_slice_for_rt_utils(header, series.reference) for header in series.headers]
    with TemporaryDirectory() as place:
        folder, file = Path(place, "ct"), Path(place, "rt_struct.dcm")
        _save_series(folder, series, slices)
        took = _alternately(
            smooth=lambda: _write_and_check(series, segmentation, "smooth"),
            voxel=lambda: _write_and_check(series, segmentation, "voxel"),
            documented=lambda: _write_as_documented(folder, masks, file),
            in_memory=lambda: _write_with_rt_utils(slices, masks),
            read_back=lambda: _read_with_rt_utils(_write_with_rt_utils(slices, masks), slices),
        )
    written = _write_with_rt_utils(slices, masks)
    smooth_dice = _dice(_write_and_check(series, segmentation, "smooth"), series, masks)
    voxel_dice = _dice(_write_and_check(series, segmentation, "voxel"), series, masks)
    smooth, documented, in_memory = took["smooth"], took["documented"], took["in_memory"]
    return (
        *_both("smooth contours, written, read back and checked", smooth),
        *_both("voxel contours, written, read back and checked", took["voxel"]),
        *_both("rt-utils as documented, from folder to file, not read back", documented),
        *_both("rt-utils on data sets in memory, not read back", in_memory),
        *_both("rt-utils on data sets in memory, read back", took["read_back"]),
        at_least("rt-utils as documented over ours (smooth)", documented.wall / smooth.wall, 10),
        Figure("the same in CPU time", documented.cpu / smooth.cpu),
        Figure("stricter: rt-utils in memory, not read back, over ours", in_memory.wall / smooth.wall),
        Figure("the same in CPU time", in_memory.cpu / smooth.cpu),
        at_least("lowest Dice by an independent reader: smooth", min(smooth_dice.values()), 0.97),
        at_least("lowest Dice by an independent reader: voxel", min(voxel_dice.values()), 1.0),
        Figure("lowest Dice by an independent reader: rt-utils", min(_dice(written, series, masks).values())),
    )


def _both(name: str, took: Seconds) -> tuple[Figure, Figure]:
    return Figure(name, took.wall, "s"), Figure("    CPU time of it", took.cpu, "s")


def _alternately(**works: Callable[[], object]) -> dict[str, Seconds]:
    """The median time of each work; what slows the machine for a while slows them all."""
    rounds = [{name: _seconds(work) for name, work in works.items()} for _ in range(ROUNDS)]
    return {
        name: Seconds(
            statistics.median(each[name].wall for each in rounds),
            statistics.median(each[name].cpu for each in rounds),
        )
        for name in works
    }


def _seconds(work: Callable[[], object]) -> Seconds:
    gc.collect()  # Nobody pays for what another left behind.
    began, began_cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - began, time.process_time() - began_cpu)


def _write_and_check(series: CtSeries, segmentation: Segmentation, mode: ContourMode) -> bytes:
    options = organs.options(mode)
    made = rt_struct.build(series, segmentation, options)
    rt_struct_check.check(made.data, series, segmentation, options)
    return made.data


def _write_as_documented(folder: Path, masks: dict[str, NDArray[np.bool_]], file: Path) -> None:
    """The lines of rt-utils' own documentation."""
    made = RTStructBuilder.create_new(dicom_series_path=str(folder))
    for name, mask in masks.items():
        made.add_roi(mask=np.moveaxis(mask, 0, -1), name=name)
    with redirect_stdout(None):
        made.save(str(file))


def _write_with_rt_utils(slices: list[Dataset], masks: dict[str, NDArray[np.bool_]]) -> bytes:
    made = RtUtilsStruct(slices, ds_helper.create_rtstruct_dataset(slices))
    for name, mask in masks.items():
        made.add_roi(mask=np.moveaxis(mask, 0, -1), name=name)
    file = BytesIO()
    made.ds.save_as(file)
    return file.getvalue()


def _read_with_rt_utils(data: bytes, slices: list[Dataset]) -> list[NDArray[np.bool_]]:
    read = RtUtilsStruct(slices, dcmread(BytesIO(data)))
    return [read.get_roi_mask_by_name(name) for name in read.get_roi_names()]


def _save_series(folder: Path, series: CtSeries, slices: list[Dataset]) -> None:
    """Uncompressed, one file a slice."""
    folder.mkdir()
    for index, (header, pixels) in enumerate(zip(slices, series.volume.hu, strict=True)):
        dataset = Dataset()
        dataset.update(header)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = 1
        dataset.PixelData = pixels.tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(folder / f"{index:03}.dcm", enforce_file_format=True)


def _slice_for_rt_utils(header: CtHeader, reference: Dataset) -> Dataset:
    dataset = Dataset()
    dataset.update(reference)
    dataset.SOPClassUID, dataset.SOPInstanceUID = header.sop_class_uid, header.sop_instance_uid
    dataset.SeriesInstanceUID = header.series_instance_uid
    dataset.FrameOfReferenceUID = header.frame_of_reference_uid
    dataset.ImagePositionPatient = list(header.image_position_patient)
    dataset.ImageOrientationPatient = list(header.image_orientation_patient)
    dataset.PixelSpacing = list(header.pixel_spacing)
    dataset.Rows, dataset.Columns = header.rows, header.columns
    return dataset


def _dice(data: bytes, series: CtSeries, masks: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
    """By scikit-image's point-in-polygon test at voxel centres, exclusive or within a slice."""
    dataset = dcmread(BytesIO(data))
    names = {item.ROINumber: item.ROIName for item in dataset.StructureSetROISequence}
    slices = {header.sop_instance_uid: index for index, header in enumerate(series.headers)}
    scores = {}
    for roi in dataset.ROIContourSequence:
        mask = masks[names[roi.ReferencedROINumber]]
        read = np.zeros_like(mask)
        for contour in roi.ContourSequence:
            index = slices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            origin = series.headers[index].image_position_patient
            points = (np.array(contour.ContourData, float).reshape(-1, 3) - origin)[:, 1::-1] / PIXEL_MM
            first = np.floor(points.min(axis=0)).astype(int)
            extent = np.ceil(points.max(axis=0)).astype(int) - first + 1
            part = read[index, first[0] : first[0] + extent[0], first[1] : first[1] + extent[1]]
            part ^= polygon2mask(extent, points - first)
        scores[names[roi.ReferencedROINumber]] = 2 * (read & mask).sum() / (read.sum() + mask.sum())
    return {name: float(score) for name, score in scores.items()}


def _segmentation() -> Segmentation:
    return Segmentation(tuple(_found(organ, index) for index, organ in enumerate(ORGANS, 1)), "cpu", {})


def _found(organ: Organ, channel: int) -> StructureMap:
    """A map whose probability falls from 1 to 0 within about 4 mm, as a network's does."""
    spacing = np.array([SLICE_MM, PIXEL_MM, PIXEL_MM])
    centre, radii = np.array(organ.centre_mm), np.array(organ.radii_mm)
    start = np.floor((centre - radii - 4) / spacing).astype(int)
    stop = np.ceil((centre + radii + 4) / spacing).astype(int)
    grid = np.meshgrid(
        *(np.arange(*span) for span in zip(start, stop, strict=True)), indexing="ij", sparse=True
    )
    offsets = [(axis * step - at) for axis, step, at in zip(grid, spacing, centre, strict=True)]
    distance = _inside_mm(offsets, radii)
    if organ.name == "Bone_Mandible":
        hollow = [offsets[0], offsets[1] - 14, offsets[2]]
        distance = np.minimum(distance, -_inside_mm(hollow, radii - np.array([0, 8, 12])))
    probability = np.clip(0.5 + distance / 4, 0, 1).astype(np.float32)
    structure = Structure(
        name=organ.name,
        channel=channel,
        color=(25 * channel, 200, 30),
        code=Code(value="91723000", meaning="Anatomical structure"),
        volume_cm3=(0.1, 500),
    )
    first = (int(start[0]), int(start[1]), int(start[2]))
    return StructureMap(structure, first, probability, 0.5, 0.9, ())


def _inside_mm(offsets: list[NDArray[np.float64]], radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """About how deep each voxel lies inside an ellipsoid; negative outside."""
    radius = np.sqrt(sum((offset / extent) ** 2 for offset, extent in zip(offsets, radii, strict=True)))
    return np.asarray((1 - radius) * radii.min())


def _whole(found: StructureMap) -> NDArray[np.bool_]:
    mask = np.zeros((SLICES, ROWS, COLUMNS), np.bool_)
    mask[found.box] = found.mask
    return mask


def _series() -> CtSeries:
    origins = np.array([(-250.0, -250.0, -400.25 + SLICE_MM * index) for index in range(SLICES)])
    planes = PlaneStack(origins, np.eye(3)[0], np.eye(3)[1], PIXEL_MM, PIXEL_MM, ROWS, COLUMNS)
    headers = tuple(_header(index, origin) for index, origin in enumerate(origins.tolist()))
    volume = Volume(np.zeros(planes.shape, np.int16), planes)
    hashes = tuple(f"{index:064x}" for index in range(SLICES))
    return CtSeries(volume, headers, hashes, _reference())


def _header(index: int, origin: list[float]) -> CtHeader:
    x, y, z = origin
    return CtHeader(
        sop_class_uid=CTImageStorage,
        sop_instance_uid=f"1.2.826.0.1.3680043.8.498.9.1.1.{index}",
        series_instance_uid="1.2.826.0.1.3680043.8.498.9.1.1",
        study_instance_uid="1.2.826.0.1.3680043.8.498.9.1",
        frame_of_reference_uid="1.2.826.0.1.3680043.8.498.9.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        image_position_patient=(x, y, z),
        image_orientation_patient=(1, 0, 0, 0, 1, 0),
        pixel_spacing=(PIXEL_MM, PIXEL_MM),
        rows=ROWS,
        columns=COLUMNS,
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        slice_thickness=SLICE_MM,
        convolution_kernel="B30f",
        series_description="",
        protocol_name="",
        patient_id="BENCHMARK",
        content_date_time="",
    )


def _reference() -> Dataset:
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID = "Benchmark^Nine", "BENCHMARK"
    dataset.PatientBirthDate, dataset.PatientSex = "", ""
    dataset.StudyInstanceUID, dataset.StudyID = "1.2.826.0.1.3680043.8.498.9.1", "1"
    dataset.StudyDate, dataset.StudyTime = "20260101", "120000"
    return dataset


if __name__ == "__main__":
    main("Mask to RT Structure Set: nine structures at 512 x 512 x 178", measure)
