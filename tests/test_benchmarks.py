"""What a benchmark says when the machine does not let it finish."""

from __future__ import annotations

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt

from benchmarks import reception
from benchmarks.figures import NotMeasuredError


def test_a_receiver_that_ends_the_association_is_named_with_the_slice() -> None:
    ae = AE()
    ae.add_supported_context(CTImageStorage)

    def take_two(event: evt.Event) -> int:
        if event.request.AffectedSOPInstanceUID.endswith(".3"):
            event.assoc.abort()
        return 0x0000

    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take_two)])
    try:
        with pytest.raises(NotMeasuredError, match=r"bare: slice 3 of 178: no answer"):
            reception._send("bare", server.server_address[1], reception._series(0))
    finally:
        server.shutdown()
