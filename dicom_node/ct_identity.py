"""What an object takes over from the CT in whose study it lies.

Owns the Patient, clinical trial and Study modules, the character set, and the clock that dates are read by.
Speaks pydicom data sets; text goes over as the very bytes, whatever its character set.
Never invents a value that belongs to the patient or the study: what the CT lacks stays empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import cast

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import STR_VR

PATIENT_MODULE = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID"),
    "IssuerOfPatientIDQualifiersSequence",
    *("PatientBirthDate", "PatientBirthTime", "PatientBirthDateInAlternativeCalendar"),
    *("PatientDeathDateInAlternativeCalendar", "PatientAlternativeCalendar", "PatientSex"),
    *("OtherPatientIDs", "OtherPatientNames", "OtherPatientIDsSequence", "ReferencedPatientSequence"),
    *("QualityControlSubject", "EthnicGroup", "PatientComments", "PatientSpeciesDescription"),
    *("PatientBreedDescription", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
)
"""PS3.3 C.7.1.1."""

CLINICAL_TRIAL_MODULES = (
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName"),
    *("ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID"),
    *("ClinicalTrialSubjectReadingID", "ClinicalTrialProtocolEthicsCommitteeName"),
    *("ClinicalTrialProtocolEthicsCommitteeApprovalNumber", "ClinicalTrialTimePointID"),
    "ClinicalTrialTimePointDescription",
)
"""PS3.3 C.7.1.3, C.7.2.3."""

STUDY_MODULES = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
    *("ReferringPhysicianIdentificationSequence", "StudyID", "AccessionNumber"),
    *("IssuerOfAccessionNumberSequence", "StudyDescription", "PhysiciansOfRecord"),
    *("PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy"),
    *("RequestingService", "ReferencedStudySequence", "ProcedureCodeSequence"),
    *("AdmittingDiagnosesDescription", "PatientAge", "PatientSize", "PatientWeight"),
    *("Occupation", "AdditionalPatientHistory"),
)
"""PS3.3 C.7.2.1, C.7.2.2."""

TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
"""What the Patient and General Study modules ask to be there, if only empty."""


def take_patient_and_study(dataset: Dataset, reference: Dataset) -> None:
    """Patient, clinical trial and study modules: the CT's own bytes, character set included."""
    take(dataset, reference, ("SpecificCharacterSet", "TimezoneOffsetFromUTC"))
    take(dataset, reference, (*PATIENT_MODULE, *CLINICAL_TRIAL_MODULES, *STUDY_MODULES))
    for keyword in TYPE_2:
        if keyword not in dataset:
            setattr(dataset, keyword, "")


def take(dataset: Dataset, reference: Dataset, keywords: Iterable[str]) -> None:
    """Take elements over from the CT: text as the very bytes, whatever its character set."""
    for keyword in keywords:
        tag = Tag(keyword)
        if tag not in reference:
            continue
        element = reference.get_item(tag)
        vr = element.VR or dictionary_VR(tag)
        if element.is_raw and vr in STR_VR:
            # By name, which a CT in Implicit VR does not give and Explicit VR needs.
            dataset[tag] = cast(RawDataElement, element)._replace(VR=vr)
        else:
            dataset[tag] = reference[tag]


def local_time(created_at: datetime, dataset: Dataset) -> datetime:
    """On the clock that the CT's dates are read by.

    Timezone Offset From UTC (0008,0201) holds for every date in the object, those of the study
    too, so it is only there where the CT has it. Else dates are the hospital's wall time
    (PS3.3 C.12.1.1.8), which is this machine's, and that is what planning systems show.
    """
    offset = str(dataset.get("TimezoneOffsetFromUTC") or "").strip()
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit():
        ahead = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:]))
        return created_at.astimezone(timezone(-ahead if offset[0] == "-" else ahead))
    return created_at.astimezone()


def date_and_time(moment: datetime) -> tuple[str, str]:
    """As DA and TM."""
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")


def ascii_text(text: str, most: int) -> str:
    """Our own words within a VR's limits, in ASCII, which every character set of a CT contains."""
    plain = text.encode("ascii", "replace").decode().replace("\\", "/")
    return plain[:most].strip()
