"""What hostile peers say: fuzzed PDU sequences, bombs, and names that are none.

Owns the ways in which valid association requests, C-STOREs, aborts and releases are spoilt.
Speaks bytes; the same random numbers give the same bytes.
Never opens a connection.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.chaos.wire import (
    ABORT,
    CT,
    IMPLICIT,
    RELEASE,
    STORE,
    association_request,
    command,
    echo_request,
    element,
    fragment,
    item,
    pdu,
    store_request,
    uid,
)

ROGUE, CALLED = "ROGUE", "ANATOMYNODE"
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass(frozen=True)
class Visit:
    """One connection of a hostile peer.

    Attributes:
        kind: for the table.
        hello: the association request.
        awaits: whether the peer waits for the answer to it before it goes on.
        pieces: what it sends then, each by itself.
        reads: whether it hears the node out at the end; else it hangs up at once.
    """

    kind: str
    hello: bytes
    awaits: bool = False
    pieces: tuple[bytes, ...] = ()
    reads: bool = True


def visits(seed: int, count: int) -> Iterator[Visit]:
    """So many, all kinds in turn."""
    chance = random.Random(seed)
    kinds = list(KINDS)
    for number in range(count):
        yield KINDS[kinds[number % len(kinds)]](chance)


def mutated(chance: random.Random, data: bytes) -> bytes:
    """`data` with one to four mistakes."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                found[at:at] = chance.randbytes(chance.randint(1, 40))
            case 2:
                del found[at : at + chance.randint(1, 40)]
            case 3:
                found[at:at] = found[at : at + chance.randint(1, 200)]
            case 4:
                form = chance.choice((">H", ">L", "<H", "<L"))
                size = struct.calcsize(form)
                value = chance.choice(EXTREMES) & ((1 << 8 * size) - 1)
                found[at : at + size] = struct.pack(form, value)
            case _:
                del found[at + 1 :]
    return bytes(found)


def data_set(chance: random.Random, **changes: bytes) -> tuple[bytes, bytes]:
    """SOP Instance UID and a small CT slice in Implicit VR LE.

    Args:
        changes: other values for `instance`, `study`, `series`, `patient`, or bytes put in `front`.
    """
    number = chance.getrandbits(64)
    instance = changes.get("instance", f"2.25.{number}.1".encode())
    parts = [
        element(0x0008_0016, uid(CT)),
        element(0x0008_0018, uid(instance)),
        element(0x0008_0060, b"CT"),
        changes.get("front", b""),
        element(0x0010_0020, uid(changes.get("patient", b"NOBODY"))),
        element(0x0020_000D, uid(changes.get("study", b"2.25.1"))),
        element(0x0020_000E, uid(changes.get("series", f"2.25.{number % 50}".encode()))),
        element(0x0020_0032, b"0\\0\\1 "),
        element(0x0028_0010, b"\x08\0"),
        element(0x0028_0011, b"\x08\0"),
        element(0x7FE0_0010, chance.randbytes(128)),
    ]
    return instance, b"".join(parts)


def _hello() -> bytes:
    return association_request(ROGUE, CALLED, IMPLICIT)


def _stored(chance: random.Random, longest: int = 65_000, **changes: bytes) -> list[bytes]:
    return store_request(*data_set(chance, **changes), longest=longest)


# --- the kinds -----------------------------------------------------------------------------------


def _request(chance: random.Random) -> Visit:
    """An association request with mistakes; its header may be right nevertheless."""
    hello = _hello()
    spoilt = mutated(chance, hello) if chance.random() < 0.3 else pdu(1, mutated(chance, hello[6:]))
    return Visit("association request with mistakes", spoilt, True, (echo_request(), RELEASE))


def _lengths(chance: random.Random) -> Visit:
    """Lengths that are none: of PDUs, of values in them, of elements."""
    data = data_set(chance)[1]
    claimed = chance.choice(EXTREMES)
    spoilt = chance.choice(
        (
            struct.pack(">BBL", chance.choice((1, 4, 5, 7)), 0, claimed) + bytes(chance.randrange(200)),
            pdu(4, struct.pack(">LBB", claimed, 1, chance.randrange(4)) + data),
            fragment(element(0, struct.pack("<L", claimed)) + command(STORE, CT, b"2.25.3")[12:], 3),
            b"".join(_stored(chance, front=struct.pack("<HHL", 0x0008, 0x1140, claimed))),
        )
    )
    return Visit("wrong lengths", _hello(), True, (spoilt,), chance.random() < 0.7)


def _store(chance: random.Random) -> Visit:
    """A C-STORE with mistakes in its PDUs, command or data set."""
    pieces = _stored(chance)
    at = chance.randrange(len(pieces))
    whole = pieces[at]
    pieces[at] = mutated(chance, whole) if chance.random() < 0.3 else pdu(4, mutated(chance, whole[6:]))
    return Visit("C-STORE with mistakes", _hello(), True, (*pieces, RELEASE), chance.random() < 0.8)


def _values(chance: random.Random) -> Visit:
    """A well-framed C-STORE whose data set has mistakes."""
    instance, data = data_set(chance)
    pieces = store_request(instance, mutated(chance, data))
    return Visit("data set with mistakes", _hello(), True, (*pieces, RELEASE))


def _fragments(chance: random.Random) -> Visit:
    """A valid C-STORE in very small fragments, cut again on their way, perhaps never ended."""
    whole = b"".join(_stored(chance, longest=chance.randint(1, 30)))
    size = chance.randint(3, 300)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)][:60]
    return Visit("fragments", _hello(), True, tuple(pieces), chance.random() < 0.5)


def _pipelined(chance: random.Random) -> Visit:
    """Everything at once, before any answer."""
    many = [echo_request() for _ in range(chance.randint(1, 40))]
    many += [one for _ in range(chance.randint(1, 5)) for one in _stored(chance)]
    return Visit("pipelining", _hello(), chance.random() < 0.5, (b"".join(many) + RELEASE,))


def _disorder(chance: random.Random) -> Visit:
    """Valid PDUs in an order that is none."""
    pieces = [
        *_stored(chance),
        *_stored(chance),
        RELEASE,
        RELEASE,
        ABORT,
        _hello(),
        echo_request(),
        pdu(6, bytes(4)),
    ]
    chance.shuffle(pieces)
    hello = _hello() if chance.random() < 0.7 else pieces[-1]
    pieces = pieces[: chance.randint(1, len(pieces))]
    return Visit(
        "valid PDUs out of order", hello, chance.random() < 0.8, tuple(pieces), chance.random() < 0.5
    )


def _nested(chance: random.Random) -> Visit:
    """Sequences in sequences, and items in items."""
    depth = chance.choice((3, 50, 990, 3000))
    if chance.random() < 0.3:
        inner = b""
        for _ in range(min(depth, 900)):
            inner = item(chance.choice((0x20, 0x50, 0x58, 0x54)), inner)
        return Visit("nesting", pdu(1, _hello()[6:] + inner), True, (echo_request(),))
    begin = struct.pack("<HHLHHL", 0x0008, 0x1140, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    ends = depth if chance.random() < 0.5 else 0
    pieces = _stored(chance, front=begin * depth + end * ends)
    return Visit("nesting", _hello(), True, (*pieces, RELEASE))


def _abort(chance: random.Random) -> Visit:
    """An A-ABORT amid a C-STORE, or no farewell at all."""
    pieces = _stored(chance)[: chance.randint(0, 2)]
    end = (ABORT,) if chance.random() < 0.6 else ()
    return Visit("aborts", _hello(), chance.random() < 0.8, (*pieces, *end), False)


def _noise(chance: random.Random) -> Visit:
    """Bytes."""
    pieces = tuple(chance.randbytes(chance.randint(1, 500)) for _ in range(chance.randint(1, 4)))
    hello = _hello() if chance.random() < 0.5 else chance.randbytes(chance.randint(1, 300))
    return Visit("noise", hello, chance.random() < 0.5, pieces, chance.random() < 0.5)


KINDS: dict[str, Callable[[random.Random], Visit]] = {
    function.__name__: function
    for function in (
        _request,
        _lengths,
        _store,
        _values,
        _fragments,
        _pipelined,
        _disorder,
        _nested,
        _abort,
        _noise,
    )
}


# --- bombs ---------------------------------------------------------------------------------------

MIB = 1 << 20


def bombs(mib: int) -> Iterator[Visit]:
    """Visits that are large, not wrong: each of about `mib` MiB, sent piece by piece."""
    chance = random.Random(mib)
    endless = tuple([fragment(bytes(65_000), 0)] * (mib * 16))
    yield Visit("endless data set", _hello(), True, (fragment(command(STORE, CT, b"2.25.4"), 3), *endless))
    yield Visit("endless command", _hello(), True, tuple([fragment(bytes(65_000), 1)] * (mib * 16)))
    empty = struct.pack("<HHL", 0x0008, 0x0100, 0) * (mib * MIB // 8)
    yield Visit("a data set of empty elements", _hello(), True, tuple(_stored(chance, front=empty)))
    tiny = pdu(4, (struct.pack(">LBB", 2, 1, 0)) * 20_000)
    yield Visit(
        "empty fragments",
        _hello(),
        True,
        (fragment(command(STORE, CT, b"2.25.5"), 3), *[tiny] * (2 * mib)),
    )
    odd = element(0x0000_0001, b"") * (mib * MIB // 64)
    orders = [odd[at : at + 65_000] for at in range(0, len(odd), 65_000)]
    parts = tuple(fragment(one, 3 if at == len(orders) - 1 else 1) for at, one in enumerate(orders))
    yield Visit("a command of empty elements", _hello(), True, parts)
    begin = struct.pack("<HHLHHL", 0x0008, 0x1140, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    yield Visit("a million levels", _hello(), True, tuple(_stored(chance, front=begin * (mib * MIB // 16))))
    contexts = item(0x20, b"\1\0\0\0" + item(0x30, CT.encode()) + item(0x40, IMPLICIT.encode()))
    fixed = _hello()[6:74]
    yield Visit("2,400 presentation contexts", pdu(1, fixed + contexts * 2400 + item(0x50, b"")), True)
    users = item(0x50, item(0x52, b"") * 16_000)
    yield Visit("16,000 user items", pdu(1, _hello()[6:] + users), True)


# --- names ---------------------------------------------------------------------------------------

NAMES: tuple[bytes, ...] = (
    b"",
    b" ",
    b".",
    b"..",
    b"../../escaped",
    b"../../../../../../tmp/escaped",
    b"/tmp/escaped",
    b"/etc/passwd",
    b"..\\..\\escaped",
    b"C:\\escaped",
    b"1.2.3/../../escaped",
    b"1.2.3\0/escaped",
    b"\0",
    b"\0" * 64,
    b"1.2.3\0.4",
    b"1" * 64,
    b"1" * 65,
    b"1." * 40,
    b"1" * 5000,
    b"A" * 16,
    b"%s%s%s%n",
    b"%(event)s",
    b"{event}{0}",
    b"{0.__class__}",
    b"$(touch escaped)",
    b"`touch escaped`",
    b"; touch escaped",
    b"'; DROP TABLE x",
    b'" OR ""="',
    b'\n{"event":"inj"}',
    b'","event":"inj',
    b"\r\nInjected: 1",
    b"\x1b[2Jcleared",
    b"\x1b$B\x1b(B",
    b"\xff\xfe\xfd",
    "Größe µ".encode("latin-1"),
    "検査装置".encode(),
    "\u202egnp.exe".encode(),
    b"1.2.\xc0\xaf3",
    b"ROGUE\\OTHER",
)


def named(name: bytes, seed: int) -> Iterator[Visit]:
    """Visits of a peer that uses `name` wherever it may put one."""
    chance = random.Random(seed)
    kind = "hostile names"
    for hello in (
        association_request(name, CALLED),
        association_request(ROGUE, name),
        association_request(name, name),
    ):
        yield Visit(kind, hello, True, (echo_request(), RELEASE))
    own = item(0x50, item(0x52, name[:60000]) + item(0x55, name[:60000]))
    yield Visit(kind, pdu(1, _hello()[6:] + own), True, (echo_request(), RELEASE))
    for what in ("instance", "study", "series", "patient"):
        yield Visit(kind, _hello(), True, (*_stored(chance, **{what: name}), RELEASE))
    elsewhere, data = data_set(chance)
    yield Visit(kind, _hello(), True, (*store_request(name, data), *store_request(elsewhere, data), RELEASE))
