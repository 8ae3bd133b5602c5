"""The organs that a model of ours may draw, whichever model and whoever drew them for training.

Owns one table: TG-263 name, code, colour, side, postprocessing, and which drawings are to be believed.
Speaks cm3 and HU; arrays (slices, rows, columns).
Never knows a patient: a drawing outside its bounds is refused, not mended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.card import Code, Postprocessing


@dataclass(frozen=True)
class Anatomy:
    """What a TG-263 name stands for.

    Attributes:
        volume_cm3: what a whole or cut organ may have; a drawing outside is a mistake of the archive.
        mean_hu: likewise for the mean over the drawing.
        color: red, green, blue; the same for one organ in every model.
        laterality: the patient's side, where there are two.
        whole_cm3: a drawing of less, though the scan shows more above and below it, is of a part only; 0
            where no such habit is known.
    """

    volume_cm3: tuple[float, float]
    mean_hu: tuple[float, float]
    color: tuple[int, int, int]
    code: Code
    laterality: Literal["L", "R"] | None = None
    postprocessing: Postprocessing = field(default_factory=Postprocessing)
    whole_cm3: float = 0.0

    def is_plausible(
        self, hu: NDArray[np.int16], mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
    ) -> bool:
        """Whether volume and mean HU of a drawing are those of the organ."""
        if not mask.any():
            return False
        volume_cm3 = float(mask.sum() * spacing_mm.prod() / 1000)
        low, high = self.mean_hu
        return self.volume_cm3[0] <= volume_cm3 <= self.volume_cm3[1] and low <= hu[mask].mean() <= high

    def is_whole(self, mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> bool:
        """Whether a drawing may be all of the organ that the scan shows; what the scan cuts may be."""
        is_cut = bool(mask[0].any() or mask[-1].any())
        return is_cut or float(mask.sum() * spacing_mm.prod() / 1000) >= self.whole_cm3


# Codes as PS3.16 has them, in the words of pydicom.sr.codedict.
_PAROTID = Code(value="45289007", meaning="Parotid gland")
_SUBMANDIBULAR = Code(value="54019009", meaning="Submandibular gland")
_EYE = Code(value="79652003", meaning="Eyeball")
_OPTIC_NERVE = Code(value="18234004", meaning="optic nerve")
_LUNG = Code(value="39607008", meaning="Lung")

# No part of these within a slice is smaller in 1,260 slices that people drew (docs/CONTOURS.md), and a voxel
# of the model's grid is larger: what is, is noise.
_ISLAND_MM2 = 10.0
_SOLID = Postprocessing(min_island_mm2=_ISLAND_MM2)

# Small or thin on the model's grid: a piece of few voxels is still one of it.
_SMALL = Postprocessing(min_component_cm3=0.05)

# Clinical archives hold outright errors, such as a "brainstem" with the HU of bone or a "cord" of
# half a litre. The bounds are wide: 1st and 99th percentile of the training patients with a margin of
# about a third; those of the radiographers' organs leave room for what the slab cuts off.
ANATOMY: Mapping[str, Anatomy] = {
    "Brainstem": Anatomy(
        (0.5, 50.0),
        (-20.0, 90.0),
        (78, 160, 214),
        Code(value="119238007", meaning="Brain Stem"),
        postprocessing=_SOLID,
        # Clinics have two habits: of OpenKBP's 84 training brainstems that the scan does not cut, 70 have
        # 18.7 to 45 cm3, and 14 have 5 to 17.8: only what is near the target was drawn. A network that learns
        # from both stops 8 mm below the upper end (docs/ABLATION.md).
        whole_cm3=18.0,
    ),
    # An early or uncertain cord comes in pieces along the canal: they are all cord. Marrow in an upper arm,
    # 200 mm to the side, is not.
    "SpinalCord": Anatomy(
        (2.0, 80.0),
        (-50.0, 200.0),
        (240, 200, 60),
        Code(value="2748008", meaning="Spinal cord"),
        postprocessing=Postprocessing(
            components=3, min_component_cm3=0.5, reach_mm=30, min_island_mm2=_ISLAND_MM2
        ),
    ),
    "Parotid_L": Anatomy((4.0, 90.0), (-110.0, 130.0), (86, 180, 110), _PAROTID, "L", _SOLID),
    "Parotid_R": Anatomy((4.0, 90.0), (-110.0, 130.0), (200, 110, 190), _PAROTID, "R", _SOLID),
    # Dental metal cuts the mandible in two.
    "Bone_Mandible": Anatomy(
        (15.0, 130.0),
        (300.0, 1600.0),
        (225, 120, 70),
        Code(value="91609006", meaning="Mandible"),
        postprocessing=Postprocessing(components=2, min_component_cm3=1.0, reach_mm=30),
    ),
    # Its air is inside the contour in most clinics, hence the low HU.
    "Larynx": Anatomy((2.0, 85.0), (-420.0, 60.0), (140, 110, 220), Code(value="4596009", meaning="Larynx")),
    "Esophagus": Anatomy(
        (2.0, 45.0),
        (-200.0, 150.0),
        (160, 120, 90),
        Code(value="32849002", meaning="Esophagus"),
        postprocessing=Postprocessing(components=2, min_component_cm3=0.5, reach_mm=30),
    ),
    "Glnd_Submand_L": Anatomy((2.0, 25.0), (-60.0, 150.0), (60, 200, 190), _SUBMANDIBULAR, "L", _SOLID),
    "Glnd_Submand_R": Anatomy((2.0, 25.0), (-60.0, 150.0), (230, 150, 200), _SUBMANDIBULAR, "R", _SOLID),
    "Eye_L": Anatomy((0.5, 15.0), (-150.0, 100.0), (120, 200, 240), _EYE, "L", _SOLID),
    "Eye_R": Anatomy((0.5, 15.0), (-150.0, 100.0), (180, 220, 130), _EYE, "R", _SOLID),
    "OpticNrv_L": Anatomy((0.2, 2.0), (-150.0, 100.0), (250, 220, 140), _OPTIC_NERVE, "L", _SMALL),
    "OpticNrv_R": Anatomy((0.2, 2.0), (-150.0, 100.0), (250, 170, 120), _OPTIC_NERVE, "R", _SMALL),
    "Brain": Anatomy((20.0, 2000.0), (0.0, 100.0), (170, 190, 210), Code(value="12738006", meaning="Brain")),
    "Lung_L": Anatomy((20.0, 4000.0), (-950.0, -500.0), (100, 140, 170), _LUNG, "L"),
    "Lung_R": Anatomy((20.0, 4000.0), (-950.0, -500.0), (130, 160, 140), _LUNG, "R"),
}

MIRROR_PAIRS = tuple((name, f"{name[:-1]}R") for name, organ in ANATOMY.items() if organ.laterality == "L")
"""Names that a mirrored patient exchanges."""
