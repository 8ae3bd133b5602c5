"""The compressed transfer syntaxes that this node understands.

Owns the one list that reception offers and that reading decodes.
Speaks pydicom UIDs.
Never names a lossy one: contours follow HU.
"""

from __future__ import annotations

from pydicom.uid import JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

COMPRESSED = (RLELossless, JPEGLosslessSV1, JPEGLossless, JPEGLSLossless, JPEG2000Lossless)
"""Each gives back the very pixels."""
