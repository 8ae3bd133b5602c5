"""The archive that the node under fire sends to: Orthanc, or the stand-in where there is none.

Owns its process, and the question what RT Structure Sets it holds of each study.
Speaks Orthanc's configuration and REST.
Never is restarted while the node is: what it holds at the end is what ever reached it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydicom.uid import RTStructureSetStorage

from benchmarks.figures import NotMeasuredError
from dicom_node.free_ports import free_ports
from dicom_node.stand_in_pacs import StandInPacs

AE_TITLE = "PACS"


class Archive(Protocol):
    """An archive under the AE title `PACS`."""

    name: str
    port: int
    commits: bool

    def rt_structs(self) -> Counter[str]:
        """How many different RT Structure Sets it holds of each study."""


@contextmanager
def running(folder: Path, node: tuple[str, int]) -> Iterator[Archive]:
    """The archive, which knows the node by its AE title and port."""
    if shutil.which("Orthanc") is None:
        stand_in = _StandIn(folder)
        with stand_in.pacs:
            stand_in.port = stand_in.pacs.port
            yield stand_in
        return
    orthanc = _Orthanc(folder, node)
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            ["Orthanc", str(orthanc.configuration)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        orthanc.wait()
        yield orthanc
    finally:
        process.terminate()
        process.wait()


class _StandIn:
    name, commits, port = "the stand-in PACS", False, 0

    def __init__(self, folder: Path) -> None:
        self.pacs = StandInPacs(folder / "pacs", AE_TITLE)

    def rt_structs(self) -> Counter[str]:
        return Counter(one.study_instance_uid for one in self.pacs.instances(RTStructureSetStorage))


class _Orthanc:
    name, commits = "Orthanc", True

    def __init__(self, folder: Path, node: tuple[str, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self._http = free_ports(2)
        self.configuration = folder / "orthanc.json"
        settings = {
            "Name": AE_TITLE,
            "DicomAet": AE_TITLE,
            "DicomPort": self.port,
            "HttpPort": self._http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "StorageDirectory": str(folder / "orthanc"),
            "DicomCheckModalityHost": False,
            "DicomModalities": {"node": [node[0], "127.0.0.1", node[1]]},
        }
        self.configuration.write_text(json.dumps(settings))

    def wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                self._get("/system")
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise NotMeasuredError("Orthanc did not start")

    def rt_structs(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for study in self._get("/studies?expand"):
            instances = self._get(f"/studies/{study['ID']}/instances")
            found[study["MainDicomTags"]["StudyInstanceUID"]] = len(instances)
        return found

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}{path}", timeout=20) as answer:
            return json.load(answer)
