"""What tests of the worker share: a model package, a network that needs no ONNX, and received series.

Owns the stand-ins for reception and inference.
Speaks the real database, spool files and model card.
Never decides anything that the product decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sqlalchemy import Engine

from dicom_node.config import Config
from dicom_node.intake import AssociationEnd, Intake, Registry
from dicom_node.keyed_hash import KeyedHash
from inference.segmentation import Segmentation, StructureMap
from inference.volume import Volume
from models.card import ModelPackage
from tests import phantoms
from tests.phantoms import Phantom

HASHED = KeyedHash(b"0123456789abcdef")


def write_package(folder: Path, name: str = "test-model", structure: str = "Brainstem") -> str:
    """A model package in `folder` that draws one structure; the sha256 of its `.onnx`."""
    package = folder / name
    package.mkdir(parents=True)
    content = b"no network" if name == "test-model" else name.encode()
    (package / "model.onnx").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    card = {
        "name": name,
        "version": "1",
        "sha256": sha256,
        "summary": "A box in the middle.",
        "licence": "Apache-2.0",
        "attributions": [],
        "input": {
            "spacing_mm": [3.0, 4.0, 4.0],
            "window": {"lower_hu": -200, "upper_hu": 800},
            "max_extent_mm": [400.0, 400.0, 400.0],
        },
        "structures": [
            {
                "name": structure,
                "channel": 1,
                "color": [0, 255, 0],
                "code": {"value": "15926001", "meaning": "Brainstem"},
                "volume_cm3": [1.0, 1000.0],
            }
        ],
    }
    (package / "model.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    return sha256


class BoxSegmenter:
    """Finds a box in the middle of every volume, or raises what it was given."""

    device = "cpu"
    shift: tuple[int, int, int] = (0, 0, 0)
    """Of the box, in voxels (slices, rows, columns)."""

    def __init__(self, package: ModelPackage, problem: Exception | None = None) -> None:
        self._structure = package.description.structures[0]
        self.problem = problem
        self.flags: tuple[str, ...] = ()
        self.runs = 0

    def warm_up(self) -> float:
        return 0.0

    def segment(self, volume: Volume) -> Segmentation:
        self.runs += 1
        if self.problem is not None:
            raise self.problem
        slices, rows, columns = volume.hu.shape
        probability = np.zeros((8, 12, 12), np.float32)
        probability[1:-1, 1:-1, 1:-1] = 1.0
        down, back, left = self.shift
        start = (slices // 2 - 4 + down, rows // 2 - 6 + back, columns // 2 - 6 + left)
        box = StructureMap(self._structure, start, probability, 0.5, 1.0, self.flags)
        return Segmentation((box,), "cpu", {"preprocess": 0.0, "forward": 0.0, "postprocess": 0.0})


def configuration(folder: Path, package_sha256: str | None, **changes: Any) -> Config:
    """A node in `folder` with the test model and one destination; times as in production."""
    return Config.model_validate(
        {
            "peers": [],
            "storage": {"folder": folder},
            "series": {"min_slices": 10},
            "model": {
                "package": "test-model",
                "folder": folder / "packages",
                "approved_sha256": package_sha256,
            },
            "inference": {"device": "cpu", "allow_cpu": True},
            "destinations": [{"name": "pacs", "host": "127.0.0.1", "port": 1, "ae_title": "PACS"}],
            "hash_key": "0123456789abcdef",
            **changes,
        }
    )


def receive(
    engine: Engine,
    config: Config,
    phantom: Phantom,
    at: float,
    which: Iterable[int] | None = None,
    outcome: str | None = "released",
) -> None:
    """One association brings slices of a phantom at one moment, and ends then as `outcome` says."""
    datasets, spool = _datasets(phantom), config.storage.spool
    spool.mkdir(parents=True, exist_ok=True)
    registry = Registry(engine, lambda: at, lambda file: (spool / file).exists())
    association_id = registry.association_opened("SCANNER", "ANATOMYNODE", "127.0.0.1")
    for index in range(len(datasets)) if which is None else which:
        intake, data = _intake(*datasets[index], association_id)
        (spool / intake.file).write_bytes(data)
        registry.take(intake)
    if outcome is not None:
        registry.association_ended(association_id, AssociationEnd(outcome))


_BUILT: dict[str, list[tuple[Any, bytes]]] = {}


def _datasets(phantom: Phantom) -> list[tuple[Any, bytes]]:
    """The phantom's slices with their encodings; built once, since tests push the same ones often."""
    key = repr(phantom)
    if key not in _BUILT:
        _BUILT[key] = [(dataset, phantoms.encode(dataset)) for dataset in phantoms.slices(phantom)]
    return _BUILT[key]


def _intake(dataset: Any, data: bytes, association_id: int) -> tuple[Intake, bytes]:
    sha256 = hashlib.sha256(data).hexdigest()
    intake = Intake(
        association_id=association_id,
        sop_instance_uid=str(dataset.SOPInstanceUID),
        sop_class_uid=str(dataset.SOPClassUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        study_instance_uid=str(dataset.StudyInstanceUID),
        patient_key=HASHED(str(dataset.PatientID)),
        accession_key=HASHED(str(dataset.AccessionNumber)),
        sha256=sha256,
        file=f"{sha256}.dcm",
        size_bytes=len(data),
        geometry={
            "ImagePositionPatient": _floats(dataset.ImagePositionPatient),
            "ImageOrientationPatient": _floats(dataset.ImageOrientationPatient),
            "PixelSpacing": _floats(dataset.PixelSpacing),
            "Rows": int(dataset.Rows),
            "Columns": int(dataset.Columns),
        },
    )
    return intake, data


def _floats(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]
