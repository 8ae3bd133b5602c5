"""A scanner that sends series after series, and each slice until it is acknowledged.

Owns the list of what the node has acknowledged, with the sha256 of each slice's bytes.
Speaks C-STORE by `dicom_node.scu`, one association after another as the node dies and comes back.
Never waits for the node's contours longer than to keep a few series in its queue.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom.dsutils import split_dataset

from dicom_node import scu
from dicom_node.config import Destination
from dicom_node.errors import AnatomyNodeError
from dicom_node.phantom import write_phantom
from dicom_node.store_status import KEPT

SLICES, MATRIX, SPACING_MM = 40, 128, (4.0, 4.0, 4.0)
AE_TITLE = "SCANNER"
PAUSE_S = 0.2


@dataclass
class Scanner:
    """Sends in a thread of its own from `start` to `stop`.

    Attributes:
        node: where to.
        may_send: whether the next series may go out.
        acknowledged: SOP Instance UID to the sha256 of the data set that was answered with success.
        studies: Study Instance UID of each series that was acknowledged as a whole.
        resends: how often a slice went out again.
    """

    folder: Path
    node: Destination
    may_send: Callable[[], bool]
    acknowledged: dict[str, str] = field(default_factory=dict)
    studies: list[str] = field(default_factory=list)
    resends: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        write_phantom(self.folder / "phantom", SLICES, MATRIX, SPACING_MM)
        self._thread = threading.Thread(target=self._run, name="scanner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, once the series under way is acknowledged."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(120)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self.may_send():
                self._send_series()
            else:
                self._stopping.wait(PAUSE_S)

    def _send_series(self) -> None:
        study, folder = self._another()
        left = [scu.identify(file) for file in sorted(folder.iterdir())]
        while left:
            try:
                with scu.association(self.node, AE_TITLE, scu.contexts_for(left)) as peer:
                    while left and scu.send(peer, left[0]).kind in KEPT:
                        one = left.pop(0)
                        _, offset = split_dataset(one.file)
                        data = one.file.read_bytes()[offset:]
                        self.acknowledged[one.sop_instance_uid] = hashlib.sha256(data).hexdigest()
            except AnatomyNodeError:
                pass  # the node is dead or not yet back
            if left:
                self.resends += 1
                time.sleep(PAUSE_S)
        self.studies.append(study)
        shutil.rmtree(folder)

    def _another(self) -> tuple[str, Path]:
        """The phantom as the series of another patient's study."""
        study, series, frame = (str(generate_uid(None)) for _ in range(3))
        folder = self.folder / series
        folder.mkdir()
        for file in sorted((self.folder / "phantom").iterdir()):
            one = dcmread(file)
            one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
            one.PatientID = f"PHANTOM-{study[-8:]}"
            one.save_as(folder / file.name)
        return study, folder
