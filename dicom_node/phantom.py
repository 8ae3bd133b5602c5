"""An anthropomorphic head-and-neck phantom, painted from geometry: the demo's patient.

Owns the anatomy (as a table of solids and their HU), the scanner's noise and the DICOM series.
Speaks LPS millimetres around the midpoint of the two parotids, HU, and files of CT Image Storage.
Never trained on, and nobody's anatomy: proportions are those of an average adult.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node.solids import Floats, Section, Solid, ellipsoid, loft, plate, tube, union
from dicom_node.uids import derive_uid

AIR_HU = -1000.0
_EDGE_MM = 1.2  # how far the scanner smears an edge
_TOP_MM = 115.0  # the first 100 slices of 3 mm reach from above the ears to the lung apices
_CENTRE_Y_MM = 32.0  # of the field of view


@dataclass(frozen=True)
class Layer:
    """One solid and what fills it; later layers replace what earlier ones painted.

    Attributes:
        hu: its Hounsfield units.
        both_sides: painted on the left, and mirrored on the right.
        texture_hu: standard deviation of its patchiness over about a centimetre.
    """

    solid: Solid
    hu: float
    both_sides: bool = False
    texture_hu: float = 0.0


@dataclass(frozen=True)
class Grid:
    """Axial slices of a supine patient, head first; index (slice, row, column), slice 0 lowest.

    Attributes:
        first_mm: LPS x, y, z of the centre of voxel (0, 0, 0).
        spacing_mm: slice, row, column distances.
    """

    slices: int
    matrix: int
    spacing_mm: tuple[float, float, float]

    @property
    def first_mm(self) -> tuple[float, float, float]:
        """LPS x, y, z of the centre of voxel (0, 0, 0)."""
        between, row, column = self.spacing_mm
        half = (self.matrix - 1) / 2
        return -half * column, _CENTRE_Y_MM - half * row, self._top_mm - (self.slices - 1) * between

    @property
    def _top_mm(self) -> float:
        """The default stack hangs from above the ears; a longer one grows both ways."""
        return min(_TOP_MM, 0.36 * self.slices * self.spacing_mm[0] + 7.0)

    def axes(self) -> tuple[Floats, Floats, Floats]:
        """Columns' x (1, 1, columns), y (1, rows, 1) and z (slices, 1, 1) in LPS millimetres."""
        x, y, z = (
            np.float32(start) + np.arange(count, dtype=np.float32) * np.float32(step)
            for start, count, step in zip(
                self.first_mm, (self.matrix, self.matrix, self.slices), self.spacing_mm[::-1], strict=True
            )
        )
        return x[None, None, :], y[None, :, None], z[:, None, None]

    def box(self, solid: Solid) -> tuple[slice, slice, slice]:
        """The part of the grid that a solid and its smeared edge can touch."""
        first = np.array(self.first_mm)
        step = np.array(self.spacing_mm[::-1])
        counts = np.array((self.matrix, self.matrix, self.slices))
        start = np.clip(np.floor((solid.low - 2 * _EDGE_MM - first) / step), 0, counts).astype(int)
        stop = np.clip(np.ceil((solid.high + 2 * _EDGE_MM - first) / step) + 1, 0, counts).astype(int)
        x, y, z = (slice(low, high) for low, high in zip(start, stop, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Phantom:
    """The phantom on a grid.

    Attributes:
        hu: int16 (slices, rows, columns).
        structures: TG-263 name to bool mask of the same shape: where the organs really are.
    """

    grid: Grid
    hu: NDArray[np.int16]
    structures: Mapping[str, NDArray[np.bool_]]


# --- Anatomy -------------------------------------------------------------------------------------
# x to the left, y to the back, z to the head; (0, 0, 0) lies midway between the parotids.

_SKIN = loft(
    [
        Section(-170, 212, -52, 60, 148, 2.6),
        Section(-145, 208, -40, 62, 142, 2.6),
        Section(-122, 178, -30, 58, 130, 2.4),
        Section(-108, 130, -27, 52, 118, 2.1),
        Section(-95, 88, -28, 45, 104, 2.0),
        Section(-80, 65, -31, 35, 91, 2.1),
        Section(-62, 60, -38, 28, 83, 2.2),
        Section(-48, 60, -58, 20, 79, 2.1),
        Section(-36, 63, -86, 12, 79, 2.0),
        Section(-15, 68, -92, 6, 81, 2.1),
        Section(5, 72, -91, 5, 87, 2.1),
        Section(30, 72, -88, 8, 98, 2.1),
        Section(60, 70, -83, 12, 100, 2.1),
        Section(90, 60, -72, 14, 90, 2.1),
        Section(105, 6, -10, 14, 30, 2.0),
    ]
)
_CEREBRUM = union(
    ellipsoid((0, 14, 80), (63, 84, 66)).within(ellipsoid((0, 10, 260), (400, 400, 200))),
    ellipsoid((0, 44, 36), (52, 42, 31)),
)
_TEMPORAL = ellipsoid((36, -8, 54), (25, 32, 20))
_CRANIUM = union(_CEREBRUM, _TEMPORAL, _TEMPORAL.mirrored())
_HEAD = union(_SKIN, _CRANIUM.grown(11))

_CORD_PATH = np.array(
    [
        (0, 29, 12), (0, 28, 0), (0, 26, -20), (0, 26, -45), (0, 30, -65), (0, 37, -85),
        (0, 47, -105), (0, 58, -128), (0, 67, -155), (0, 73, -185), (0, 76, -240),
    ],
    np.float32,
)  # fmt: skip
_CORD = tube(_CORD_PATH, 5.2, flatten=(1.35, 1, 1))
_CANAL = tube(_CORD_PATH, 7.6, flatten=(1.4, 1, 1))
_BRAINSTEM = union(
    tube([(0, 29, 15), (0, 27, 21), (0, 25, 30)], [6.5, 7.5, 9], flatten=(1.15, 1, 1)),
    ellipsoid((0, 21.5, 37), (15, 10.5, 13)),
    tube([(0, 24, 46), (0, 21, 58)], [9.5, 9], flatten=(1.45, 1, 1)),
)
_PAROTID = union(
    ellipsoid((60, 2, 2), (10, 16, 21)),
    ellipsoid((58, 6, -12), (10, 12, 13)),
    ellipsoid((50, 3, 0), (9, 8, 16)),
    ellipsoid((64, -12, 4), (6, 12, 10)),
)

_JAW_ARCH = np.array(
    [(48, -16, -20), (46, -30, -24), (41, -46, -26), (32, -63, -27), (19, -76, -28), (0, -81, -28)],
    np.float32,
)
_MANDIBLE_BODY = tube(_JAW_ARCH, [4.8, 5, 5.2, 5.4, 5.6, 5.8], flatten=(1, 1, 2.45))
_RAMUS = plate(
    [(-1, 26), (-9, 27), (-13, 16), (-24, 13), (-31, 27), (-36, 22), (-38, 0), (-42, -14),
     (-40, -38), (-18, -36), (-8, -28), (-4, -8)],
    middle_x=49.5, lean=0.04, half_thickness=3.0,
)  # fmt: skip
_CONDYLE = ellipsoid((50, -4, 27), (9, 5, 5))
_MANDIBLE_SIDE = union(_MANDIBLE_BODY, _RAMUS.grown(1.0), _CONDYLE)
_MANDIBLE = union(_MANDIBLE_SIDE, _MANDIBLE_SIDE.mirrored())

_VERTEBRA_Z = (-16, -32, -48, -64, -81, -99, -119, -140, -162, -185, -209, -233)

STRUCTURES: Mapping[str, Solid] = {
    "Brainstem": _BRAINSTEM,
    "SpinalCord": _CORD.without(ellipsoid((0, 29, 30), (30, 30, 21))),
    "Parotid_L": _PAROTID.without(_MANDIBLE),
    "Parotid_R": _PAROTID.mirrored().without(_MANDIBLE),
    "Bone_Mandible": _MANDIBLE,
}
"""The organs that the demo compares with what the model draws."""


def _outside() -> Iterator[Layer]:
    """Couch top, its foam, and the cushion under the head."""
    board = loft([Section(-400, 262, 140, 172, 188, 4.0), Section(400, 262, 140, 172, 188, 4.0)])
    yield Layer(board, -120)
    yield Layer(board.grown(-3), -950)
    yield Layer(ellipsoid((0, 122, 70), (105, 34, 70)), -955)
    yield Layer(tube([(0, 112, -55), (0, 112, -25)], 22, flatten=(3.2, 1, 1)), -950)


def _skin_and_fat() -> Iterator[Layer]:
    yield Layer(ellipsoid((76, 26, 30), (6, 17, 27), tilt_deg=15), -10, both_sides=True)
    yield Layer(ellipsoid((79, 23, 32), (4, 9, 15), tilt_deg=15), AIR_HU, both_sides=True)
    yield Layer(ellipsoid((0, -94, 30), (13, 15, 15), tilt_deg=25), 5)
    yield Layer(_HEAD, 0)
    yield Layer(_HEAD.grown(-2), -98, texture_hu=10)


def _muscles() -> Iterator[Layer]:
    """Flesh inside the fat, with fat between its bellies."""
    neck = tube(
        [(0, 22, 0), (0, 24, -45), (0, 28, -75), (0, 42, -105), (0, 60, -140), (0, 66, -240)],
        [38, 38, 38, 40, 52, 60], flatten=(1.15, 1, 1),
    )  # fmt: skip
    yield Layer(neck.within(_HEAD.grown(-6)), 10, texture_hu=35)
    trunk = loft(
        [
            Section(-240, 205, -42, 60, 138, 2.6),
            Section(-125, 165, -18, 60, 118, 2.4),
            Section(-104, 92, -10, 50, 98, 2.0),
        ]
    )
    below = ellipsoid((0, 50, -300), (400, 400, 195))
    yield Layer(trunk.within(below), 25, texture_hu=28)
    yield Layer(ellipsoid((0, -38, -10), (56, 42, 34)).within(_HEAD.grown(-5)), -20, texture_hu=28)
    for path, radius, flatten in (
        # deep and superficial extensors of the neck
        (
            [(14, 50, 4), (16, 50, -40), (17, 56, -75), (20, 76, -110), (24, 96, -150), (26, 104, -240)],
            12,
            (1, 1, 1),
        ),
        ([(30, 52, 2), (34, 46, -35), (36, 46, -70), (40, 62, -105), (46, 92, -150)], 10, (1, 1.1, 1)),
        (
            [(20, 72, 0), (20, 70, -40), (24, 74, -75), (40, 92, -105), (95, 108, -122), (160, 92, -128)],
            [6, 7, 8, 10, 11, 10],
            (1.5, 1, 1),
        ),
        # levator scapulae, scalenes, longus colli
        ([(44, 34, -8), (46, 36, -50), (54, 52, -90), (84, 88, -125)], 8, (1, 1, 1)),
        ([(24, 14, -30), (30, 16, -65), (42, 26, -105), (58, 36, -130)], 8, (1, 1, 1)),
        ([(9, 6, 8), (9, 5, -30), (10, 9, -65), (11, 20, -95), (12, 34, -120)], 6, (1.2, 0.8, 1)),
        # sternocleidomastoid
        (
            [(58, 28, 6), (54, 22, -30), (45, 6, -65), (30, -10, -95), (15, -24, -128)],
            [8, 9, 9, 8, 6],
            (1, 1.25, 1),
        ),
        # masseter, temporalis, medial and lateral pterygoid
        ([(57, -36, 14), (57, -30, -8), (55, -24, -26)], [7, 7.5, 6], (0.8, 1.9, 1)),
        ([(60, -22, 55), (55, -26, 22)], [5, 7], (0.8, 2.6, 1)),
        ([(33, -22, 14), (40, -18, -10), (44, -16, -24)], [7, 7, 5], (1, 1.3, 1)),
        ([(30, -24, 22), (46, -8, 26)], 8, (1, 1, 1)),
        # digastric, mylohyoid, strap muscles
        ([(14, -70, -40), (22, -40, -48), (14, -30, -56)], 5, (1, 1, 1)),
        ([(9, -30, -60), (9, -31, -90), (8, -28, -125)], 4, (2.2, 1, 1)),
        # shoulder and chest
        ([(196, 40, -118), (200, 48, -160), (190, 55, -240)], [12, 14, 14], (1, 2.6, 1)),
        ([(60, -20, -165), (120, -14, -150), (165, 8, -142)], [8, 11, 10], (1, 1, 1.6)),
        ([(110, 104, -150), (150, 96, -150), (175, 80, -145)], [12, 13, 10], (1, 1, 2)),
        ([(60, 112, -160), (64, 118, -240)], 9, (2.4, 1, 1)),
    ):
        yield Layer(tube(path, radius, flatten).within(_HEAD.grown(-5)), 58, both_sides=True, texture_hu=6)
    yield Layer(ellipsoid((0, -48, -6), (23, 30, 20)), 58, texture_hu=10)  # tongue
    yield Layer(ellipsoid((0, -56, -28), (20, 22, 12)), 50, texture_hu=10)  # floor of the mouth
    yield Layer(
        tube([(-38, -72, 0), (-20, -86, 0), (0, -90, 0), (20, -86, 0), (38, -72, 0)], 5, (1, 1, 2.6)), 40
    )
    yield Layer(
        tube([(0, -6, 30), (0, -6, -10), (0, -8, -50), (0, -14, -75)], [15, 15, 15, 15], (1.35, 1, 1)), 48
    )


def _glands_and_vessels() -> Iterator[Layer]:
    yield Layer(_PAROTID, -14, both_sides=True, texture_hu=22)
    yield Layer(
        tube([(53, 4, 22), (55, 0, 0), (52, 4, -24)], 2.6), 55, both_sides=True
    )  # retromandibular vein
    yield Layer(ellipsoid((31, -24, -38), (9, 15, 11)), 45, both_sides=True, texture_hu=10)  # submandibular
    yield Layer(tube([(21, -14, -92), (20, -13, -112)], [6, 7], (1, 1.2, 1)), 105, both_sides=True)  # thyroid
    yield Layer(
        tube([(32, 6, 12), (33, 0, -20), (32, -6, -50), (28, -6, -85), (20, 0, -125)], 4), 62, both_sides=True
    )
    yield Layer(
        tube([(38, 12, 8), (40, 6, -20), (40, 0, -50), (36, -2, -85), (28, -4, -125)], 5.5),
        66,
        both_sides=True,
    )
    yield Layer(
        tube([(2, 18, -92), (3, 28, -120), (2, 42, -150), (0, 52, -190), (0, 56, -240)], 6), 38
    )  # oesophagus


def _skull() -> Iterator[Layer]:
    yield Layer(_CRANIUM.grown(7), 1150)
    yield Layer(_CRANIUM.grown(4.4), 700, texture_hu=80)  # diploë
    yield Layer(_CRANIUM.grown(2.6), 1150)
    yield Layer(ellipsoid((0, 90, 40), (14, 12, 14)).within(_HEAD.grown(-5)), 1000)  # occipital protuberance
    for solid, hu in (
        (tube([(14, 6, 34), (34, 12, 34), (54, 20, 28)], [8, 10, 12]), 1000),  # petrous bone
        (tube([(54, 26, 24), (55, 26, 6)], [12, 7]), 800),  # mastoid
        (tube([(54, -4, 36), (58, -30, 34), (50, -52, 34)], [5, 3, 5], (0.9, 1, 1.6)), 900),  # zygomatic arch
        (tube([(50, -54, 34), (44, -56, 55), (38, -54, 76)], [6, 4, 5]), 950),  # lateral orbital rim
        (tube([(30, -70, 46), (46, -58, 38)], 4, (1, 1, 1.2)), 900),  # lower orbital rim
        (ellipsoid((29, -56, 30), (18, 20, 21)), 850),  # maxilla
        (plate([(-30, 30), (-18, 30), (-20, 6), (-28, 8)], 20, 0.25, 2.0), 850),  # pterygoid plate
        (tube([(14, -72, 78), (40, -58, 76)], 6, (1, 1.2, 1)), 1000),  # brow
        (tube([(20, 10, 14), (14, 40, 9)], 5), 1000),  # rim of the foramen magnum
    ):
        yield Layer(solid, hu, both_sides=True)
    yield Layer(
        tube([(0, 12, 9), (0, 2, 26), (0, -4, 46)], [5, 8, 10], (1.6, 1, 1)), 750, texture_hu=60
    )  # clivus
    yield Layer(tube([(0, 48, 7), (0, 66, 14)], 5, (3, 1, 1)), 1000)
    yield Layer(tube([(36, -46, 9), (30, -66, 8), (14, -80, 8), (0, -83, 8), (-14, -80, 8), (-30, -66, 8),
                      (-36, -46, 9)], 5, (1, 1, 1.7)), 950)  # fmt: skip
    yield Layer(plate([(-80, 10), (-36, 10), (-36, 13), (-80, 13)], 0, 0, 28), 800)  # hard palate
    yield Layer(tube([(0, -84, 62), (0, -90, 48)], [6, 3], (1.4, 1, 1)), 900)  # nasal bones


def _brain() -> Iterator[Layer]:
    yield Layer(_CRANIUM, 22, texture_hu=4)  # fluid
    yield Layer(_CRANIUM.grown(-2), 36, texture_hu=4)
    yield Layer(tube([(0, 29, 14), (0, 30, 4)], 12, (1.2, 1, 1)), 16)  # foramen magnum
    yield Layer(_BRAINSTEM.grown(3.5).within(_CRANIUM), 12)  # cisterns
    yield Layer(ellipsoid((0, 37, 36), (8, 4, 9)), 10)  # fourth ventricle
    yield Layer(ellipsoid((16, 14, 92), (7, 38, 9), tilt_deg=8), 8, both_sides=True)  # lateral ventricles
    yield Layer(tube([(0, 92, 60), (0, 70, 62)], 3, (1, 1, 3)), 55)  # venous sinus, tentorium
    yield Layer(_BRAINSTEM, 31, texture_hu=3)


def _eyes() -> Iterator[Layer]:
    yield Layer(tube([(32, -62, 62), (17, -24, 60)], [16, 5]), -90, both_sides=True)
    yield Layer(ellipsoid((32, -70, 62), (12.5, 12.5, 12.5)), 38, both_sides=True)
    yield Layer(ellipsoid((32, -70, 62), (11, 11, 11)), 12, both_sides=True)
    yield Layer(ellipsoid((32, -79, 62), (5, 2.4, 5)), 75, both_sides=True)  # lens
    yield Layer(tube([(31, -57, 62), (22, -38, 61), (15, -22, 60)], 2.3), 38, both_sides=True)  # optic nerve
    yield Layer(tube([(21, -64, 62), (16, -30, 60)], 2.2, (1, 1, 2)), 50, both_sides=True)
    yield Layer(tube([(43, -62, 62), (22, -30, 60)], 2.2, (1, 1, 2)), 50, both_sides=True)


def _spine() -> Iterator[Layer]:
    """The atlas, the dens, and vertebrae with disc, arch, joints and spinous process."""
    yield Layer(
        tube([(21, 18, 2), (20, 32, 2), (9, 44, 3), (0, 46, 3)], [8, 5, 3.6, 3.6]), 950, both_sides=True
    )
    yield Layer(tube([(21, 18, 2), (9, 8, 2), (0, 5, 2)], [8, 4, 4]), 950, both_sides=True)
    yield Layer(tube([(24, 22, 0), (38, 24, 0)], [6, 4]), 800, both_sides=True)
    yield Layer(tube([(0, 13, 8), (0, 12, -14)], [4.6, 6]), 950)  # dens
    for level, z in enumerate(_VERTEBRA_Z):
        yield from _vertebra(np.array((0, np.interp(-z, -_CORD_PATH[:, 2], _CORD_PATH[:, 1]), z)), level)
    yield Layer(_CANAL, 8)
    yield Layer(_CORD, 38, texture_hu=3)


def _vertebra(canal: NDArray[np.float64], level: int) -> Iterator[Layer]:
    """One vertebra around the canal's point; lower ones are larger."""
    size = 1 + 0.045 * level
    lean = 0.18 if level < 4 else 0.5  # the spine's curve
    body = canal + np.array((0, -10.5 - 8.2 * size, 0))
    half_height = 5.6 * size
    ends = [body + np.array((0, -lean * h, h)) for h in (-half_height + 3, half_height - 3)]
    outline = tube(ends, 7.4 * size, flatten=(1.55, 1.05, 0.78))
    yield Layer(
        tube([body, body + np.array((0, -lean * 10, 10 * size))], 7 * size, (1.5, 1, 0.9)), 85
    )  # disc
    yield Layer(outline, 820)
    yield Layer(outline.grown(-1.8), 330, texture_hu=60)
    arch = [(9 * size, -9, 0), (15, -2, 0), (14, 6, -2), (7, 13, -4), (0, 16, -5)]
    yield Layer(tube(canal + np.array(arch), [3.6, 4, 3.4, 3, 3]), 800, both_sides=True)
    yield Layer(
        tube(canal + np.array([(20, -2, 6), (20, 1, -6)]), 5.2 * size), 720, both_sides=True
    )  # joints
    reach = 20 + 3.2 * level
    yield Layer(tube(canal + np.array([(0, 16, -5), (0, 14 + reach, -8 - reach * 0.35)]), [3.4, 3.6]), 800)
    tip = 26.0 if level < 6 else 38.0
    yield Layer(tube(canal + np.array([(14, -8, 0), (tip, -4, 0)]), [4.4, 3.6]), 700, both_sides=True)


def _jaw() -> Iterator[Layer]:
    yield Layer(_MANDIBLE, 1250)
    yield Layer(_MANDIBLE.grown(-2.2), 480, texture_hu=60)
    angles = np.linspace(0.06, 1.0, 8)
    for share in angles:
        x, y = 37 * np.sin(share * 1.5), -46 - 36 * np.cos(share * 1.5)
        yield Layer(ellipsoid((x, y, -9), (3.6, 3.6, 8)), 1900, both_sides=True)
        yield Layer(ellipsoid((x * 0.96, y, 4), (3.4, 3.4, 8)), 1900, both_sides=True)


def _airway() -> Iterator[Layer]:
    """Nose, sinuses, pharynx, larynx with its cartilage, trachea; hyoid."""
    yield Layer(ellipsoid((27, -56, 31), (13, 16, 16)), AIR_HU, both_sides=True)  # maxillary sinus
    yield Layer(ellipsoid((7, -46, 60), (5, 20, 8)), AIR_HU, both_sides=True)  # ethmoid cells
    yield Layer(ellipsoid((7, -14, 46), (7, 11, 8)), AIR_HU, both_sides=True)  # sphenoid sinus
    yield Layer(ellipsoid((9, -74, 88), (8, 4, 9)), AIR_HU, both_sides=True)  # frontal sinus
    yield Layer(
        tube([(6, -84, 26), (7, -60, 32), (7, -30, 30)], [4, 6, 6], (0.9, 1, 2.2)), AIR_HU, both_sides=True
    )
    yield Layer(tube([(9, -70, 24), (9, -40, 24)], 3.4, (1, 1, 1.5)), 45, both_sides=True)  # conchae
    yield Layer(tube([(8, -64, 36), (8, -40, 36)], 2.6, (1, 1, 1.3)), 45, both_sides=True)
    yield Layer(tube([(0, -86, 30), (0, -28, 30)], 1.3, (1, 1, 14)), 90)  # septum
    for x, y, z in ((50, 24, 26), (56, 28, 20), (54, 22, 14), (58, 32, 28), (50, 30, 18)):
        yield Layer(ellipsoid((x, y, z), (3.5, 3.5, 4)), -850, both_sides=True)  # mastoid cells
    yield Layer(tube([(74, 16, 30), (46, 13, 32)], 3.5), AIR_HU, both_sides=True)  # ear canal
    yield Layer(tube([(0, -10, 30), (0, -9, 12), (0, -8, -12)], [9, 8, 6], (1.5, 1, 1)), AIR_HU)
    yield Layer(tube([(0, -8, -12), (0, -12, -35), (0, -12, -58)], [6, 6, 7], (1.7, 1, 1)), AIR_HU)
    yield Layer(tube([(-16, -52, 9), (0, -66, 9), (16, -52, 9)], 2.0, (1, 1, 1)), AIR_HU)
    yield Layer(
        tube([(-22, -16, -52), (-18, -34, -53), (0, -42, -54), (18, -34, -53), (22, -16, -52)], 2.8), 520
    )
    cartilage = tube([(0, -17, -66), (0, -16, -82)], [15, 14], (1, 1.1, 1))
    yield Layer(cartilage, 190, texture_hu=60)
    yield Layer(cartilage.grown(-3), 45)
    yield Layer(tube([(0, -14, -88), (0, -12, -98)], 12.5), 260, texture_hu=60)  # cricoid
    yield Layer(
        tube([(0, -12, -58), (0, -17, -70), (0, -15, -78), (0, -12, -98)], [6, 5, 4, 8], (1, 1.25, 1)), AIR_HU
    )
    windpipe = [(0, -12, -96), (0, -2, -120), (0, 14, -150), (0, 28, -180), (0, 34, -240)]
    yield Layer(tube(windpipe, 10.5), 60)
    yield Layer(tube(windpipe, 8.4), AIR_HU)


def _chest() -> Iterator[Layer]:
    """Shoulder girdle, ribs, lung apices."""
    yield Layer(ellipsoid((0, 20, -190), (46, 56, 50)).within(_SKIN.grown(-8)), 45)
    lung = ellipsoid((58, 46, -200), (44, 58, 66))
    for height in (-138, -158, -178, -200, -222):
        reach = float(np.sqrt(max(0.1, 1 - ((height + 200) / 68) ** 2)))
        turns = np.linspace(-2.6, 2.2, 12)
        ring = [
            (58 + 48 * reach * np.cos(t), 46 + 62 * reach * np.sin(t), height - 8 + 8 * np.sin(t))
            for t in turns
        ]
        yield Layer(tube(ring, 3.6, (1, 1, 1.5)), 620, both_sides=True)
    yield Layer(lung, -830, both_sides=True, texture_hu=25)
    yield Layer(
        tube([(12, -26, -142), (60, -14, -132), (110, 12, -122), (158, 44, -116)], 6), 780, both_sides=True
    )
    yield Layer(
        tube([(12, -26, -142), (60, -14, -132), (110, 12, -122), (158, 44, -116)], 3.5), 320, both_sides=True
    )
    yield Layer(tube([(0, -36, -150), (0, -44, -180), (0, -50, -240)], 6, (2.6, 1, 1)), 520)  # sternum
    yield Layer(ellipsoid((172, 52, -150), (23, 23, 23)), 720, both_sides=True)  # humeral head
    yield Layer(ellipsoid((172, 52, -150), (20, 20, 20)), 260, both_sides=True, texture_hu=40)
    yield Layer(tube([(176, 54, -165), (180, 58, -240)], 11), 1000, both_sides=True)
    yield Layer(
        tube([(168, 66, -122), (140, 84, -130), (100, 102, -145)], [7, 5, 4]), 750, both_sides=True
    )  # scapula
    yield Layer(
        tube([(144, 66, -148), (120, 92, -170), (90, 110, -230)], [7, 4, 4], (1, 1, 2)), 700, both_sides=True
    )


def _anatomy() -> Iterator[Layer]:
    """Everything, in the order in which it is painted."""
    for region in (
        _outside, _skin_and_fat, _muscles, _glands_and_vessels, _skull, _brain, _eyes, _chest, _spine,
        _airway, _jaw,
    ):  # fmt: skip
        yield from region()


# --- Painting ------------------------------------------------------------------------------------


def build(grid: Grid, seed: int = 0) -> Phantom:
    """Paint the phantom on a grid, with the noise of a scanner; the same seed gives the same voxels."""
    axes = grid.axes()
    structures = {name: _mask(grid, axes, solid) for name, solid in STRUCTURES.items()}
    return Phantom(grid, painted(grid, _anatomy(), seed), structures)


def painted(grid: Grid, layers: Iterable[Layer], seed: int = 0) -> NDArray[np.int16]:
    """HU (slices, rows, columns) of layers in air, as a scanner with its noise sees them."""
    axes = grid.axes()
    hu = np.full((grid.slices, grid.matrix, grid.matrix), AIR_HU, np.float32)
    for layer in layers:
        _paint(hu, grid, axes, layer.solid, layer)
        if layer.both_sides:
            _paint(hu, grid, axes, layer.solid.mirrored(), layer)
    return _scanned(hu, grid, axes[2].ravel(), seed)


def _within(
    axes: tuple[Floats, Floats, Floats], box: tuple[slice, slice, slice]
) -> tuple[Floats, Floats, Floats]:
    x, y, z = axes
    return x[:, :, box[2]], y[:, box[1]], z[box[0]]


def _paint(hu: Floats, grid: Grid, axes: tuple[Floats, Floats, Floats], solid: Solid, layer: Layer) -> None:
    """Mix one solid into `hu`, by the share of each voxel that it fills."""
    box = grid.box(solid)
    part = hu[box]
    if part.size == 0:
        return
    points = _within(axes, box)
    share = np.clip(0.5 - solid.distance(*points) / _EDGE_MM, 0, 1)
    filling = layer.hu + layer.texture_hu * _patches(*points) if layer.texture_hu else np.float32(layer.hu)
    part += share * (filling - part)


def _patches(x: Floats, y: Floats, z: Floats) -> Floats:
    """A smooth random field of unit variance: plane waves of 6 to 20 mm, each separable."""
    rng = np.random.default_rng(20260101)
    waves = 16
    field = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
    for _ in range(waves):
        direction = rng.standard_normal(3)
        k = direction / np.linalg.norm(direction) * 2 * np.pi / rng.uniform(6, 20)
        in_plane = k[0] * x + k[1] * y + rng.uniform(0, 2 * np.pi)
        # cos(a + b) from its parts, so that sines are taken of planes and lines only.
        field += (np.cos(in_plane) * np.cos(k[2] * z) - np.sin(in_plane) * np.sin(k[2] * z)).astype(
            np.float32
        )
    return field * np.float32(np.sqrt(2 / waves))


def _mask(grid: Grid, axes: tuple[Floats, Floats, Floats], solid: Solid) -> NDArray[np.bool_]:
    """Whether each voxel's centre lies in the solid."""
    mask = np.zeros((grid.slices, grid.matrix, grid.matrix), bool)
    box = grid.box(solid)
    mask[box] = solid.distance(*_within(axes, box)) <= 0
    return mask


def _scanned(hu: Floats, grid: Grid, heights: Floats, seed: int) -> NDArray[np.int16]:
    """Add the noise of a scanner, more where the shoulders are, and round to whole HU."""
    rng = np.random.default_rng(seed)
    sigma = np.interp(heights, (-150, -100, 0, 60), (24, 15, 11, 9)).astype(np.float32)
    whole = np.empty(hu.shape, np.int16)
    for index, plane in enumerate(hu):
        noise: Floats = rng.standard_normal((grid.matrix + 1, grid.matrix + 1), np.float32)
        # Neighbouring pixels of a reconstruction share their noise.
        shared = (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]) / np.float32(2)
        whole[index] = np.clip(np.rint(plane + shared * sigma[index]), -1024, 3071)
    return whole


# --- DICOM ---------------------------------------------------------------------------------------


def write_phantom(
    folder: Path,
    slices: int = 100,
    matrix: int = 512,
    spacing_mm: tuple[float, float, float] = (3.0, 0.9765625, 0.9765625),
    seed: int = 0,
) -> Phantom:
    """Write the phantom as a CT series into `folder`, one file a slice; returns what was written.

    The same arguments give the same bytes, UIDs included; another seed is another series.
    """
    phantom = build(Grid(slices, matrix, spacing_mm), seed)
    write(phantom, folder, ("phantom", str(slices), str(matrix), repr(spacing_mm), str(seed)))
    return phantom


def write(phantom: Phantom, folder: Path, series: tuple[str, ...]) -> None:
    """Write a CT series into `folder`, one file a slice; its UIDs follow from the words `series`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(phantom.grid.slices):
        _slice(phantom, index, series).save_as(folder / f"CT.{index + 1:04d}.dcm", enforce_file_format=True)


def _slice(phantom: Phantom, index: int, series: tuple[str, ...]) -> Dataset:
    """One CT Image (PS3.3 A.3), its modules in the standard's order."""
    grid = phantom.grid
    x, y, z = grid.first_mm
    between, row, column = grid.spacing_mm
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian

    # Patient, General Study, Patient Study
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = (
        "PHANTOM^HEAD NECK",
        "PHANTOM-HN",
        "",
        "O",
    )
    ds.StudyInstanceUID, ds.StudyID = derive_uid(*series, "study"), "1"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20260101", "120000", "PHANTOM"
    ds.ReferringPhysicianName, ds.StudyDescription = "", "Synthetic head and neck"

    # General Series, Frame of Reference, General Equipment
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber = "CT", derive_uid(*series, "series"), 2
    ds.SeriesDate, ds.SeriesTime, ds.SeriesDescription = "20260101", "120000", "Phantom, soft tissue"
    ds.PatientPosition, ds.BodyPartExamined, ds.ProtocolName = "HFS", "HEADNECK", "Head and neck planning"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = derive_uid(*series, "frame"), ""
    ds.Manufacturer, ds.ManufacturerModelName = "AnatomyNode", "Geometric phantom"

    # General Image, Image Plane
    ds.InstanceNumber, ds.AcquisitionNumber = grid.slices - index, 1
    ds.ContentDate, ds.ContentTime = "20260101", "120000"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PixelSpacing, ds.SliceThickness = [f"{row:.7g}", f"{column:.7g}"], f"{between:.7g}"
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [f"{x:.8g}", f"{y:.8g}", f"{z + index * between:.8g}"]
    ds.SliceLocation = f"{z + index * between:.8g}"

    # Image Pixel, CT Image
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = grid.matrix
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
    ds.KVP, ds.ConvolutionKernel, ds.GantryDetectorTilt = 120, "SOFT", 0
    ds.WindowCenter, ds.WindowWidth = 40, 400
    ds.PixelData = (phantom.hu[index].astype(np.int32) + 1024).astype("<u2").tobytes()

    # SOP Common
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, derive_uid(*series, str(index))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds
