"""What the node answers to whom, and what it has kept when it answered."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification
from sqlalchemy import text

from dicom_node.config import Config
from dicom_node.ct_slice import read_slice
from dicom_node.database import open_engine
from dicom_node.errors import ConfigurationError
from dicom_node.listener import Listener
from dicom_node.scp import LOSSLESS, NotTakenError, read_header
from dicom_node.uids import derive_uid
from tests.dicom_node.reception_rig import (
    CALLED,
    CALLING,
    associated,
    configuration,
    ct_slice,
    listening,
    raw_association,
    rows,
    serving,
)
from tests.instances import data_set_bytes
from tests.phantoms import Phantom, write
from tests.tools import needs, run, wait_until

PRIVATE_CLASS = "1.2.840.999.7.1"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configuration(tmp_path / "node", discard_sop_classes=(SecondaryCaptureImageStorage, PRIVATE_CLASS))


@pytest.fixture
def reception(config: Config) -> Iterator[Listener]:
    with listening(config) as running:
        yield running


def spooled(config: Config) -> list[Path]:
    return sorted(path for path in config.storage.spool.rglob("*") if path.is_file())


def store(reception: Listener, ds: Dataset) -> int:
    with associated(reception.port) as association:
        return int(association.send_c_store(ds).Status)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_every_offered_transfer_syntax_is_kept_as_it_was_sent(
    config: Config, reception: Listener, tmp_path: Path, syntax: UID
) -> None:
    file = tmp_path / "slice.dcm"
    ds = ct_slice()
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax.is_encapsulated:
        # Reception never decodes: what stands for the compressed frame need not be one.
        ds.PixelData = pydicom.encaps.encapsulate([b"compressed, or so it says "])
        ds["PixelData"].is_undefined_length = True
    ds.save_as(file, enforce_file_format=True)
    with associated(reception.port, syntaxes=(syntax,)) as association:
        assert association.send_c_store(file).Status == 0x0000
    (kept,) = spooled(config)
    assert data_set_bytes(kept) == data_set_bytes(file)
    assert pydicom.dcmread(kept).file_meta.TransferSyntaxUID == syntax


def test_the_listener_answers_to_each_of_its_titles_and_keeps_which_one_was_called(tmp_path: Path) -> None:
    config = configuration(tmp_path / "node", more_ae_titles=("RESEARCH",))
    with listening(config) as reception:
        for called, is_let_in in ((CALLED, True), ("RESEARCH", True), ("research", False)):
            ae = AE(ae_title=CALLING)
            ae.add_requested_context(Verification)
            association = ae.associate("127.0.0.1", reception.port, ae_title=called)
            assert association.is_established is is_let_in
            if is_let_in:
                association.release()
    assert rows(config, "SELECT called_ae_title FROM associations ORDER BY id") == [(CALLED,), ("RESEARCH",)]


NEGOTIATION = """
[[TransferSyntaxes]]
[Compressed]
TransferSyntax1 = {syntax}
[[PresentationContexts]]
[CT]
PresentationContext1 = {sop_class}\\Compressed
[[Profiles]]
[CT]
PresentationContexts = CT
"""
"""storescu's association profile: it has no option for every transfer syntax that it can send."""


def compressed(phantom: Phantom, encoder: list[str] | None, folder: Path) -> list[Path]:
    """The phantom's slices, by an encoder of DCMTK; by pydicom's for JPEG 2000, which DCMTK lacks."""
    if encoder is None:
        return write(phantom.but(transfer_syntax=JPEG2000Lossless), folder)
    files = []
    for plain in write(phantom, folder / "plain"):
        files.append(folder / plain.name)
        done = run([*encoder, plain, files[-1]])
        assert done.returncode == 0, done.stdout
    return files


@pytest.mark.parametrize(
    ("syntax", "encoder"),
    [
        (RLELossless, ["dcmcrle"]),
        (JPEGLossless, ["dcmcjpeg", "+el"]),
        (JPEGLosslessSV1, ["dcmcjpeg", "+e1"]),
        (JPEGLSLossless, ["dcmcjpls", "+el"]),
        (JPEG2000Lossless, None),
    ],
)
@pytest.mark.parametrize("signed", [False, True])
@needs("storescu", "dcmcrle", "dcmcjpeg", "dcmcjpls")
def test_what_dcmtk_sends_compressed_is_read_back_from_the_spool_to_the_very_hu(
    config: Config, reception: Listener, tmp_path: Path, syntax: UID, encoder: list[str] | None, signed: bool
) -> None:
    phantom = Phantom(offsets_mm=(0.0, 3.0, 6.0), bits_stored=16, signed=signed)
    files = compressed(phantom, encoder, tmp_path)
    profile = tmp_path / "profile.cfg"
    profile.write_text(NEGOTIATION.format(syntax=syntax, sop_class=CTImageStorage))
    sender = ["storescu", "-aet", CALLING, "-aec", CALLED, "-xf", profile, "CT"]
    sent = run([*sender, "127.0.0.1", str(reception.port), *files])
    assert sent.returncode == 0, sent.stdout
    kept = sorted(
        (read_slice(path) for path in spooled(config)), key=lambda one: one.header.image_position_patient[2]
    )
    assert {one.header.transfer_syntax_uid for one in kept} == {syntax}
    np.testing.assert_array_equal([one.hu for one in kept], phantom.voxels)


@needs("storescu")
def test_dcmtk_sends_a_series_over_one_association(
    config: Config, reception: Listener, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.dcm" for number in range(5)]
    for number, file in enumerate(files):
        ct_slice(number).save_as(file, enforce_file_format=True)
    sent = run(["storescu", "-aet", CALLING, "-aec", CALLED, "127.0.0.1", str(reception.port), *files])
    assert sent.returncode == 0, sent.stdout
    assert {data_set_bytes(path) for path in spooled(config)} == {data_set_bytes(file) for file in files}
    wait_until(lambda: rows(config, "SELECT outcome FROM associations") == [("released",)])
    assert rows(config, "SELECT state, revision FROM series") == [("RECEIVING", 1)]
    assert len(rows(config, "SELECT id FROM arrivals WHERE association_id = 1")) == 5
    assert reception.figures.snapshot().instances == 5


def test_nothing_lossy_deflated_or_not_ct_is_accepted(reception: Listener) -> None:
    ae = AE(ae_title=CALLING)
    for syntax in (JPEG2000, JPEGBaseline8Bit, DeflatedExplicitVRLittleEndian):
        ae.add_requested_context(CTImageStorage, syntax)
    ae.add_requested_context(MRImageStorage)
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", reception.port, ae_title=CALLED)
    assert [context.abstract_syntax for context in association.accepted_contexts] == [Verification]
    assert association.send_c_echo().Status == 0x0000
    association.release()


@pytest.mark.parametrize(
    ("calling", "called", "diagnostic", "reason"),
    [
        ("NOBODY", CALLED, 3, "calling_ae_title"),
        (CALLING, "OTHER", 7, "called_ae_title"),
        ("STRANGE", CALLED, 3, "peer_address"),
    ],
)
def test_strangers_are_refused_on_the_wire(
    reception: Listener, calling: str, called: str, diagnostic: int, reason: str
) -> None:
    ae = AE(ae_title=calling)
    ae.add_requested_context(CTImageStorage)
    association = ae.associate("127.0.0.1", reception.port, ae_title=called)
    assert association.is_rejected
    answer = association.acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, diagnostic)
    assert reception.figures.snapshot().associations_refused == {reason: 1}


def test_the_same_bytes_again_are_acknowledged_and_kept_once(config: Config, reception: Listener) -> None:
    assert [store(reception, ct_slice()), store(reception, ct_slice())] == [0x0000, 0x0000]
    assert len(spooled(config)) == 1
    assert rows(config, "SELECT count(*) FROM arrivals") == [(2,)]
    assert rows(config, "SELECT pushed_again_at IS NOT NULL FROM series") == [(1,)]


def test_other_bytes_under_the_same_uid_are_refused_and_the_first_stay(
    config: Config, reception: Listener
) -> None:
    assert store(reception, ct_slice()) == 0x0000
    before = spooled(config)
    assert store(reception, ct_slice(pixels=b"\1" * 2048)) == 0x0111
    assert spooled(config) == before
    assert rows(config, "SELECT flag IS NOT NULL FROM series") == [(1,)]
    assert reception.figures.snapshot().instances_refused == {"0x0111": 1}


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "../../etc/passwd"])
def test_a_data_set_without_its_identifiers_is_not_understood(
    config: Config, reception: Listener, keyword: str, value: str | None
) -> None:
    ds = ct_slice()
    if value is None:
        del ds[keyword]
    else:
        ds[keyword]._value = value
    assert store(reception, ds) == 0xC000
    assert spooled(config) == []


def test_a_data_set_that_is_not_the_commands_is_a_mismatch(reception: Listener) -> None:
    with associated(reception.port) as association:
        ds = ct_slice()
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = ds.SOPClassUID, "2.25.99"
        request.DataSet = BytesIO(encode(ds, False, True) or b"")
        association._reactor_checkpoint.clear()  # or pynetdicom's own thread would take the answer
        wait_until(lambda: association._is_paused)
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert answer.Status == 0xA900


def test_below_the_reserve_the_sender_is_told_to_come_later(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    storage = config.storage.model_copy(update={"reserve_mib": 1 << 40})
    with listening(config.model_copy(update={"storage": storage})) as reception:
        assert store(reception, ct_slice()) == 0xA700
    assert spooled(config) == []


def test_a_disk_that_fills_amid_an_association_refuses_until_there_is_room_again(
    config: Config, reception: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = [ct_slice(number) for number in range(3)]
    usage = shutil.disk_usage(config.storage.folder)
    with associated(reception.port) as association:
        assert association.send_c_store(slices[0]).Status == 0x0000
        with monkeypatch.context() as filled:
            filled.setattr(shutil, "disk_usage", lambda _folder: usage._replace(free=(1 << 20) - 1))
            assert association.send_c_store(slices[1]).Status == 0xA700
            assert association.send_c_store(slices[0]).Status == 0xA700
        assert [association.send_c_store(ds).Status for ds in slices[1:]] == [0x0000, 0x0000]
    assert {data_set_bytes(path) for path in spooled(config)} == {encode(ds, False, True) for ds in slices}
    assert rows(config, "SELECT count(*) FROM arrivals") == [(3,)]
    assert reception.figures.snapshot().instances_refused == {"0xA700": 2}


def test_a_database_that_cannot_be_written_is_a_failure_not_a_success(
    config: Config, reception: Listener
) -> None:
    with associated(reception.port) as association:
        with open_engine(config.storage.database).begin() as connection:
            connection.execute(text("DROP TABLE arrivals"))
        assert association.send_c_store(ct_slice()).Status == 0xA700
    assert reception.figures.snapshot().instances == 0


def test_a_class_to_be_thrown_away_is_accepted_counted_and_not_kept(
    config: Config, reception: Listener
) -> None:
    ds = ct_slice()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    with associated(reception.port, SecondaryCaptureImageStorage, PRIVATE_CLASS) as association:
        assert association.send_c_store(ds).Status == 0x0000
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = PRIVATE_CLASS
        assert association.send_c_store(ds).Status == 0x0000
    assert spooled(config) == []
    assert rows(config, "SELECT instances FROM discarded") == [(1,), (1,)]


def test_a_result_of_our_own_that_comes_back_starts_nothing_and_is_counted(
    config: Config, reception: Listener
) -> None:
    ds = ct_slice()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    with associated(reception.port, SecondaryCaptureImageStorage) as association:
        for uid in (derive_uid("SOP Instance", "ours"), "2.25.7"):
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
            assert association.send_c_store(ds).Status == 0x0000
    counted = reception.figures.snapshot()
    assert (counted.instances_discarded, counted.own_results_returned) == (2, 1)
    assert rows(config, "SELECT id FROM series") == []


@pytest.mark.parametrize("uid", [CTImageStorage, Verification])
def test_what_is_contoured_or_no_storage_class_cannot_be_thrown_away(tmp_path: Path, uid: str) -> None:
    with (
        pytest.raises(ConfigurationError, match="discard_sop_classes"),
        listening(configuration(tmp_path, discard_sop_classes=(uid,))),
    ):
        pass


def test_a_port_in_use_is_said_at_start(config: Config, reception: Listener) -> None:
    with pytest.raises(ConfigurationError, match=r"listener\.port"), listening(config):
        pass


def test_nothing_of_the_patient_reaches_the_database(config: Config, reception: Listener) -> None:
    store(reception, ct_slice())
    files = [config.storage.database, Path(f"{config.storage.database}-wal")]
    held = b"".join(file.read_bytes() for file in files if file.exists())
    for secret in (b"Secret", b"PID-77", b"ACC-5"):
        assert secret not in held


@pytest.mark.parametrize("broken_off", [True, False])
def test_an_association_that_is_not_released_is_aborted_or_lost(
    config: Config, reception: Listener, broken_off: bool
) -> None:
    with raw_association(reception.port) as peer:
        if broken_off:
            peer.sendall(b"\x07\0\0\0\0\x04\0\0\0\0")  # A-ABORT by the service user
    expected = "aborted" if broken_off else "lost"
    wait_until(lambda: rows(config, "SELECT outcome FROM associations") == [(expected,)])


def test_kill_9_while_receiving_loses_nothing_that_was_acknowledged(config: Config, tmp_path: Path) -> None:
    port = config.listener.port
    acknowledged: list[bytes] = []
    for life in range(2):
        with serving(config, tmp_path / "log") as process, associated(port) as association:
            for number in range(1000):
                if number == 10 + 7 * life:
                    os.kill(process.pid, 9)
                ds = ct_slice(100 * life + number, pixels=os.urandom(2048))
                if association.send_c_store(ds).get("Status") != 0x0000:
                    break
                acknowledged.append(ds.PixelData)
    assert len(acknowledged) >= 27
    kept = dict(rows(config, "SELECT sha256, file FROM instances"))
    pixels = {pydicom.dcmread(config.storage.spool / file).PixelData for file in kept.values()}
    assert set(acknowledged) <= pixels
    with listening(config):
        assert {outcome for (outcome,) in rows(config, "SELECT outcome FROM associations")} == {"lost"}


def test_a_header_is_read_alike_in_both_encodings() -> None:
    for implicit, syntax in ((True, ImplicitVRLittleEndian), (False, ExplicitVRLittleEndian)):
        header = read_header(encode(ct_slice(4), implicit, True) or b"", syntax)
        assert header.sop_instance_uid == "2.25.7.4"
        assert header.patient_id == "PID-77"
        assert header.geometry == {
            "ImagePositionPatient": [0.0, 0.0, 10.0],
            "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            "PixelSpacing": [0.9, 1.1],
            "Rows": 32,
            "Columns": 32,
        }
    with pytest.raises(NotTakenError):
        read_header(b"\xff" * 100, ExplicitVRLittleEndian)
