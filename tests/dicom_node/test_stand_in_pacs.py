"""The archive of the demo and the tests is honest."""

import hashlib

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node import scu
from dicom_node.stand_in_pacs import StandInPacs
from dicom_node.store_status import StoreKind
from tests.fault_pacs import destination, store
from tests.instances import SERIES, STUDY, data_set_bytes, write_instance


def test_what_is_stored_is_the_data_set_byte_for_byte(tmp_path):
    file = write_instance(tmp_path / "sent.dcm")
    with StandInPacs(tmp_path / "archive") as archive:
        outcome = store(destination(archive.port), "NODE", file)
        (kept,) = archive.instances()
    assert outcome.kind is StoreKind.STORED
    assert data_set_bytes(kept.file) == data_set_bytes(file)
    assert kept.sha256 == hashlib.sha256(data_set_bytes(file)).hexdigest()


def test_an_instance_that_comes_twice_is_counted_and_other_bytes_are_refused(tmp_path):
    first = write_instance(tmp_path / "first.dcm", payload=b"\1\2")
    other = write_instance(tmp_path / "other.dcm", payload=b"\3\4")
    with StandInPacs(tmp_path / "archive") as archive:
        target = destination(archive.port)
        kinds = [store(target, "NODE", file).kind for file in (first, first, other)]
        (kept,) = archive.instances()
    assert kinds == [StoreKind.STORED, StoreKind.STORED, StoreKind.DUPLICATE]
    assert archive.duplicates == 2
    assert data_set_bytes(kept.file) == data_set_bytes(first)


def test_a_restarted_archive_still_has_what_it_acknowledged(tmp_path):
    file = write_instance(tmp_path / "sent.dcm")
    for _ in range(2):
        with StandInPacs(tmp_path / "archive") as archive:
            assert store(destination(archive.port), "NODE", file).kind is StoreKind.STORED
    assert (len(archive.instances()), archive.duplicates) == (1, 1)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_hostile_uid_stays_inside_the_folder(tmp_path):
    file = write_instance(tmp_path / "sent.dcm", sop_instance_uid="2.25.3")
    file.write_bytes(file.read_bytes().replace(b"2.25.3", b"../../"))
    with StandInPacs(tmp_path / "archive") as archive:
        store(destination(archive.port), "NODE", file)
    assert {path.parent for path in tmp_path.rglob("*.dcm")} <= {tmp_path, tmp_path / "archive"}


def test_the_count_of_a_series_is_told_by_c_find(tmp_path):
    with StandInPacs(tmp_path / "archive") as archive:
        target = destination(archive.port)
        for number in range(3):
            file = write_instance(
                tmp_path / "slice.dcm", f"2.25.10{number}", CTImageStorage, ExplicitVRLittleEndian
            )
            assert store(target, "NODE", file).kind is StoreKind.STORED
        assert scu.count_instances(target, "NODE", STUDY, SERIES) == 3
        assert scu.count_instances(target, "NODE", STUDY, "2.25.999") == 0
