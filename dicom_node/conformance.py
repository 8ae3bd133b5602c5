"""The DICOM conformance statement of this very installation, in the form of PS3.2.

Owns which facts of the program and of its configuration stand in the statement; the words are in
`conformance_statement.md`.
Speaks a configuration in, Markdown out; without a date, so that the same configuration gives the same page.
Never states what the code does not hold: tables come from the values that the code itself uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from pydicom.uid import (
    UID,
    CTImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)

from dicom_node import __version__, stow
from dicom_node.config import Config, Destination, WebDestination
from dicom_node.ct_identity import CLINICAL_TRIAL_MODULES, PATIENT_MODULE, STUDY_MODULES, TYPE_2
from dicom_node.scp import LOSSLESS
from dicom_node.store_status import NO_STATUS, TABLE, UNKNOWN, StatusRange, StoreKind
from dicom_node.tls import CIPHERS
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from models.anatomy import ANATOMY

_WORDS = Path(__file__).with_name("conformance_statement.md")
_VERIFICATION, _COMMITMENT, _FIND = (
    UID("1.2.840.10008.1.1"),
    UID("1.2.840.10008.1.20.1"),
    UID("1.2.840.10008.5.1.4.1.2.2.1"),
)
_FATES = {
    StoreKind.STORED: "stored",
    StoreKind.WARNING: "stored, with the warning kept as its reason",
    StoreKind.DUPLICATE: "stored: UIDs are derived from what is inside, so it is this very object",
    StoreKind.TRANSIENT: "tried again",
    StoreKind.UNREACHABLE: "tried again",
    StoreKind.REFUSED: "refused, until a person retries it",
}


def statement(config: Config) -> str:
    """The statement for one configuration."""
    listener = config.listener
    facts = {
        "product": "AnatomyNode",
        "written_for": f"AnatomyNode {__version__}, as `{listener.ae_title}` is configured. Written by "
        "`anatomynode conformance`.",
        "services": _services(),
        "ae_title": listener.ae_title,
        "classes_scp": _classes_scp(listener.discard_sop_classes),
        "classes_scu": _classes_scu(config),
        "implementation_class_uid": IMPLEMENTATION_CLASS_UID,
        "implementation_version_name": IMPLEMENTATION_VERSION_NAME,
        "store_answers": _store_answers(),
        "transfer_syntaxes": _table(
            ("transfer syntax", "UID"), [(uid.name.split(":")[0], uid) for uid in map(UID, LOSSLESS)]
        ),
        "listener_address": f"{listener.host}, port {listener.port}",
        "more_ae_titles": ", ".join(f"`{title}`" for title in listener.more_ae_titles) or "none here",
        "destinations": _destinations(config),
        "other_destinations": _others(config),
        "web_answers": _web_answers(),
        "peers": _table(
            ("calling AE title", "addresses"),
            [(peer.ae_title, ", ".join(peer.addresses)) for peer in config.peers],
        ),
        "taken_over": _taken_over(),
        "tls_in_use": f"used by {', '.join(config.tls_by_name)}" if config.tls_by_name else "not configured",
        "ciphers": CIPHERS,
        "codes": _codes(),
        "first_delay_s": f"{config.retry.first_delay_s:g}",
        "max_delay_s": f"{config.retry.max_delay_s:g}",
        **{
            name: f"{getattr(listener, name):g}"
            for name in ("idle_timeout_s", "pdu_timeout_s", "message_timeout_s")
        },
        **{
            name: str(getattr(listener, name))
            for name in (
                "max_pdu_bytes",
                "max_associations",
                "max_associations_per_address",
                "max_outstanding_requests",
                "max_instance_mib",
            )
        },
    }
    return Template(_WORDS.read_text(encoding="utf-8")).substitute(facts)


def _services() -> str:
    rows = (
        (CTImageStorage, "no", "yes"),
        (RTStructureSetStorage, "yes", "no"),
        (SecondaryCaptureImageStorage, "optional", "no"),
        (_VERIFICATION, "yes", "yes"),
        (_COMMITMENT, "optional", "no"),
        (_FIND, "optional", "no"),
    )
    return _table(
        ("service", "as user (SCU)", "as provider (SCP)"), [(_name(uid), *roles) for uid, *roles in rows]
    )


def _classes_scp(discarded: Sequence[str]) -> str:
    return _table(
        ("SOP class", "UID", ""),
        [
            (_name(_VERIFICATION), _VERIFICATION, ""),
            (_name(CTImageStorage), CTImageStorage, "kept as received, contoured"),
            *((_name(UID(uid)), uid, "accepted, counted and thrown away") for uid in discarded),
        ],
    )


def _classes_scu(config: Config) -> str:
    destinations = config.dicom_destinations

    def where(wanted: Iterable[Destination]) -> str:
        return f"here: {', '.join(one.name for one in wanted)}" if wanted else "not in use here"

    source = config.series.query_source
    return _table(
        ("SOP class", "UID", ""),
        [
            (_name(_VERIFICATION), _VERIFICATION, "`anatomynode check`"),
            (_name(RTStructureSetStorage), RTStructureSetStorage, where(destinations)),
            (
                _name(SecondaryCaptureImageStorage),
                SecondaryCaptureImageStorage,
                where([one for one in destinations if one.preview]),
            ),
            (
                _name(_COMMITMENT),
                _COMMITMENT,
                where([one for one in destinations if one.storage_commitment.enabled]),
            ),
            (_name(_FIND), _FIND, "not in use here" if source is None else f"here: {source}"),
        ],
    )


def _store_answers() -> str:
    rows = [(_range(entry), _FATES[entry.kind], entry.reason) for entry in TABLE]
    rows += [
        ("any other", _FATES[UNKNOWN.kind], UNKNOWN.reason),
        ("none, or not readable", _FATES[NO_STATUS.kind], NO_STATUS.reason),
    ]
    return _table(("answer", "the delivery", "in words"), rows)


def _range(entry: StatusRange) -> str:
    first, last = f"{entry.first:04X}", f"{entry.last:04X}"
    return first if first == last else f"{first} to {last}"


def _destinations(config: Config) -> str:
    rows = [
        (
            one.name,
            one.ae_title,
            one.calling_ae_title or config.listener.ae_title,
            f"{one.host}, port {one.port}",
            "yes" if one.tls else "no",
            f"{one.rt_struct.profile}, {one.rt_struct.resolved.transfer_syntax} VR",
            f"{one.connect_timeout_s:g} s, {one.response_timeout_s:g} s",
        )
        for one in config.dicom_destinations
    ]
    header = ("name", "called AE title", "calling AE title", "address", "TLS", "profile", "waits")
    return _table(header, rows)


def _others(config: Config) -> str:
    """Destinations that are reached without an association."""
    rows = [
        (one.name, one.kind, one.url if isinstance(one, WebDestination) else str(one.folder))
        for one in config.destinations
        if not isinstance(one, Destination)
    ]
    return _table(("name", "kind", "where"), rows) if rows else "None here."


def _web_answers() -> str:
    rows = [(_statuses(which), _FATES[kind], f"it {words}") for which, (kind, words) in stow.STATUSES.items()]
    return _table(("HTTP status", "the delivery", "in words"), rows)


def _statuses(which: range) -> str:
    return str(which.start) if len(which) == 1 else f"{which.start} to {which.stop - 1}, the others"


def _taken_over() -> str:
    modules = {
        "SOP Common": ("SpecificCharacterSet", "TimezoneOffsetFromUTC"),
        "Patient": PATIENT_MODULE,
        "Clinical Trial Subject, Study": CLINICAL_TRIAL_MODULES,
        "General and Patient Study": STUDY_MODULES,
    }
    rows = []
    for module, keywords in modules.items():
        always = [keyword for keyword in keywords if keyword in TYPE_2 or keyword == "StudyInstanceUID"]
        others = [keyword for keyword in keywords if keyword not in always]
        told = ", ".join(always)
        if others:
            told = f"{told}{'; ' if always else ''}where the CT has them {', '.join(others)}"
        rows.append(f"| {module} | {told} | CT |")
    return "\n".join(rows)


def _codes() -> str:
    codes = {anatomy.code.value: anatomy.code for anatomy in ANATOMY.values()}
    return _table(
        ("code", "scheme", "meaning"), [(one.value, one.scheme, one.meaning) for one in codes.values()]
    )


def _name(uid: UID) -> str:
    return uid.name.removesuffix(" SOP Class")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
