"""The conformance statement: what it says is what the node does, offers and writes."""

from __future__ import annotations

import re
from dataclasses import replace
from io import BytesIO

from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from dicom_node import conformance, rt_struct, scp, scu
from dicom_node.config import Config, read_config
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from tests import fault_pacs, organs, phantoms
from tests.tools import ROOT

CONFORMANCE = ROOT / "docs" / "CONFORMANCE.md"


def section(text: str, heading: str) -> str:
    return text.partition(heading)[2].partition("\n#")[0]


def test_the_committed_statement_is_that_of_the_committed_configuration() -> None:
    assert CONFORMANCE.read_text(encoding="utf-8") == conformance.statement(read_config(ROOT / "config.yaml"))


def test_it_names_what_this_configuration_is_set_to() -> None:
    config = Config.model_validate(
        {
            "listener": {"ae_title": "CONTOURS", "port": 104, "max_pdu_bytes": 16384},
            "peers": [{"ae_title": "CT_TWO", "addresses": ["10.9.0.0/16"]}],
            "destinations": [
                {
                    "name": "archive",
                    "host": "pacs.example",
                    "port": 4242,
                    "ae_title": "ARCHIVE",
                    "preview": True,
                    "storage_commitment": {"enabled": True},
                }
            ],
        }
    )
    text = conformance.statement(config)
    assert "specification: CONTOURS" in text
    assert "port 104" in text
    assert "16384 bytes" in text
    assert "| CT_TWO | 10.9.0.0/16 |" in text
    assert "| archive | ARCHIVE | CONTOURS | pacs.example, port 4242 | no |" in text
    for name in ("Secondary Capture Image Storage", "Storage Commitment Push Model"):
        assert re.search(rf"\| {name} \| [0-9.]+ \| here: archive \|", text)


def test_it_names_what_is_reached_without_an_association() -> None:
    config = Config.model_validate(
        {
            "listener": {"more_ae_titles": ["RESEARCH"]},
            "peers": [],
            "destinations": [
                {"name": "web", "kind": "dicomweb", "url": "https://pacs.example/dicom-web/"},
                {"name": "share", "kind": "folder", "folder": "/srv/contours"},
            ],
        }
    )
    text = conformance.statement(config)
    assert "| web | dicomweb | https://pacs.example/dicom-web |" in text
    assert "| share | folder | /srv/contours |" in text
    assert "difference: `RESEARCH`." in text


def test_the_table_of_answers_to_c_store_has_every_one_and_no_other() -> None:
    table = section(CONFORMANCE.read_text(), "Table 4.2-5").partition("The node offers")[0]
    assert {int(code, 16) for code in re.findall(r"0x[0-9A-F]{4}", table)} == set(scp.StoreStatus)


def test_associations_show_the_implementation_that_the_statement_names() -> None:
    text = CONFORMANCE.read_text()
    assert f"`{IMPLEMENTATION_CLASS_UID}`" in text
    assert f"`{IMPLEMENTATION_VERSION_NAME}`" in text
    shown = []
    peer = AE(ae_title="PACS")
    peer.add_supported_context(Verification)
    handlers = [(evt.EVT_ACCEPTED, lambda event: shown.append(event.assoc.requestor))]
    server = peer.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    scu.echo(fault_pacs.destination(server.server_address[1]), "NODE")
    server.shutdown()
    entity = scp.application_entity(read_config(ROOT / "config.yaml"))
    for one in (*shown, entity):
        assert one.implementation_class_uid == IMPLEMENTATION_CLASS_UID
        assert one.implementation_version_name == IMPLEMENTATION_VERSION_NAME
    assert len(shown) == 1


def keywords_of(dataset: Dataset) -> set[str]:
    """Of the data set and of all items in it; coded concepts and references to instances are left out."""
    found = set()
    for element in dataset:
        found.add(element.keyword)
        for item in element.value if element.VR == "SQ" else ():
            if not {"CodeValue", "ReferencedSOPInstanceUID"} & {each.keyword for each in item}:
                found |= keywords_of(item)
    return found


def test_each_attribute_of_an_rt_struct_stands_in_its_table_and_each_that_is_the_nodes_is_written() -> None:
    series = phantoms.series()
    options = replace(organs.options(), predecessor_sop_instance_uid="2.25.7")
    built = rt_struct.build(series, organs.segmentation(series.volume.planes), options)
    written = keywords_of(dcmread(BytesIO(built.data)))
    table = section(CONFORMANCE.read_text(), "Table 8.1-1")
    told = set(re.findall(r"\b[A-Z][A-Za-z]+\b", table))
    assert written - told - {"RTReferencedStudySequence"} == set()
    rows = [row for row in table.splitlines() if row.endswith("| node |")]
    own = {word for row in rows for word in re.findall(r"\b[A-Z][A-Za-z]+\b", row) if tag_for_keyword(word)}
    in_coded_items = {"SegmentedPropertyTypeModifierCodeSequence"}
    assert own - written - in_coded_items == set()
