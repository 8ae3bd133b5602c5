"""UIDs that follow from what an object was made of.

Owns the rule "same content, same UID" (PS3.5 B.2: a UUID under the root 2.25).
Speaks UID strings.
Never draws a random number and never asks a clock: a job done again gives the same object.
"""

from __future__ import annotations

import hashlib

_VERSION_8 = 8 << 76
_VARIANT_RFC = 0b10 << 62
_VERSION_AND_VARIANT = 0xF << 76 | 0b11 << 62


def derive_uid(*parts: str) -> str:
    """The same UID for the same parts and no others: `2.25.` and a custom UUID (RFC 9562, version 8).

    Each part goes into the sha256 with its length before it, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    number = int.from_bytes(digest.digest()[:16], "big")
    return f"2.25.{number & ~_VERSION_AND_VARIANT | _VERSION_8 | _VARIANT_RFC}"


def is_derived(uid: str) -> bool:
    """Whether a UID was made by this rule, by this program that is: random ones (version 4) never are."""
    root, number = uid[:5], uid[5:]
    if root != "2.25." or not number.isascii() or not number.isdecimal() or len(number) > 39:
        return False
    return int(number) & _VERSION_AND_VARIANT == _VERSION_8 | _VARIANT_RFC


IMPLEMENTATION_CLASS_UID = derive_uid("AnatomyNode", "implementation class")
"""Names this program in group 0002 and in association requests (PS3.7 D.3.3.2)."""

IMPLEMENTATION_VERSION_NAME = "ANATOMYNODE"
