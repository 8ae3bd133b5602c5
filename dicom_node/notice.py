"""The words for whoever waits for contours that will not come.

Owns what a notice says: what happened, why, of which series, and what to do.
Speaks how a job ended in, sentences out; pure.
Never names the patient: the study that it lies in does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dicom_node.states import JobState
from dicom_node.story import headline

SERIES_DESCRIPTION = "AnatomyNode: NOT CONTOURED, open for the reason"


@dataclass(frozen=True)
class Notice:
    """What is to be read.

    Attributes:
        title: in a few words.
        message: the one sentence that must be seen.
        paragraphs: the rest.
    """

    title: str
    message: str
    paragraphs: tuple[str, ...]

    @property
    def comments(self) -> str:
        """The same for lists and headers."""
        return " ".join((self.message, *self.paragraphs))


def notice_of(
    job: int, state: JobState, reason: str, series_number: str, slices: int, complete_at: datetime
) -> Notice:
    """The notice of a job that ended without contours.

    Args:
        job: its number.
        state: REJECTED, FAILED or HELD.
        reason: as the job has it.
        series_number: of the CT, for there may be several in the study; may be empty.
        slices: how many came.
        complete_at: when the series was taken for complete, on the clock of the study's dates.
    """
    which = " ".join(("CT series", series_number)).strip()
    if state is JobState.FAILED:
        message = "This CT could not be contoured."
        further = "The fault is not the CT's: whoever runs the node is told, and contours may still come."
    elif state is JobState.HELD:
        message = "The contours of this CT wait for a person."
        further = "They come once somebody at the node has released them; until then contour by hand."
    else:
        message = "This CT was not contoured."
        further = (
            "No structure set comes by itself. Contour by hand, or mend what the reason says and send the "
            "series again."
        )
    return Notice(
        "No contours",
        message,
        (
            headline(job, state, reason),
            f"It is about {which}, of which {slices} slices had come by {complete_at:%Y-%m-%d %H:%M}.",
            further,
            "A structure set in this study that is newer takes this notice's place. "
            f"`anatomynode jobs show {job}` on the node tells more.",
        ),
    )
