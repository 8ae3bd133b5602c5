"""The configuration: one `config.yaml`, read once, every problem named at once with its path.

Owns the keys, their units, defaults and bounds; `config.yaml` in the repository explains each.
Speaks frozen pydantic models; secrets may come from environment variables instead.
Never re-reads the file while the node runs.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from dicom_node import routing
from dicom_node.errors import ConfigurationError
from dicom_node.profiles import (
    PROFILES,
    EmptyStructures,
    Encoding,
    Holes,
    Label,
    NameCase,
    NameLength,
    NamePrefix,
    PointsPerContour,
    Profile,
    ProfileName,
    RoiType,
)
from dicom_node.routing import RETURN_TO_SENDER, Rule
from inference.flags import FLAGS, NOT_FOUND, SERIES_FLAGS

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]
AeTitle = Annotated[
    str, Field(min_length=1, max_length=16, pattern=r"^[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]*$")
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Uid = Annotated[str, Field(max_length=64, pattern=r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+$")]

SECRET_VARIABLE = "ANATOMYNODE_HASH_KEY"  # noqa: S105 (the name of the variable, not the secret)
PAGE_TOKEN_VARIABLE = "ANATOMYNODE_PAGE_TOKEN"  # noqa: S105


def _are_networks(addresses: tuple[str, ...]) -> tuple[str, ...]:
    for address in addresses:
        ipaddress.ip_network(address, strict=False)
    return addresses


Networks = Annotated[tuple[str, ...], AfterValidator(_are_networks)]


def is_within(address: str, networks: tuple[str, ...]) -> bool:
    """Whether an IP address, an IPv4 one perhaps as IPv6 writes it, lies in one of the networks."""
    ip = ipaddress.ip_address(address.removeprefix("::ffff:"))
    return any(ip in ipaddress.ip_network(network, strict=False) for network in networks)


def is_loopback(host: str) -> bool:
    """Whether a host name or an IP address, in brackets or not, is that of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(_Section):
    """DICOM TLS (PS3.15 B.12). Peers must show a certificate that `ca` has signed."""

    certificate: Path
    key: Path
    ca: Path


class Listener(_Section):
    """The DICOM door: who may come in, and how much of it one peer may take."""

    ae_title: AeTitle = "ANATOMYNODE"
    more_ae_titles: tuple[AeTitle, ...] = ()
    """Further called AE titles that are let in, for rules of `routing` to tell apart."""
    host: str = "127.0.0.1"
    port: Port = 11112
    tls: Tls | None = None
    max_associations: Count = 10
    max_associations_per_address: Count = 10
    idle_timeout_s: Seconds = 30.0
    """An association without a message for this long is closed."""
    pdu_timeout_s: Seconds = 15.0
    """From a PDU's first byte to its last; also for the TLS handshake and the association request."""
    message_timeout_s: Seconds = 300.0
    """How long a peer may keep the node waiting for one message, all pauses within it together. A slice of
    0.5 MB needs 14 kbit/s; 64 MiB need 1.8 Mbit/s. Time in which the node itself is busy does not count."""
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1 << 20)] = 131_072
    """Offered to the peer as maximum length; a longer PDU ends the connection."""
    max_instance_mib: Count = 64
    """A longer message ends the association."""
    max_outstanding_requests: Count = 64
    discard_sop_classes: tuple[Uid, ...] = ()
    """Storage classes that are accepted, counted and thrown away."""

    @property
    def ae_titles(self) -> tuple[str, ...]:
        """Every called AE title that is let in, without the blanks at its ends."""
        return tuple(title.strip() for title in (self.ae_title, *self.more_ae_titles))


class Peer(_Section):
    """A DICOM application that may send to this node."""

    ae_title: AeTitle
    addresses: Networks
    """IP addresses or networks, such as 10.1.2.3 or 10.1.2.0/24."""

    @field_validator("addresses")
    @classmethod
    def _is_there_one(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        if not addresses:
            raise ValueError("name at least one address; 0.0.0.0/0 and ::/0 admit every one")
        return addresses

    def admits(self, address: str) -> bool:
        """Whether a connection from `address` may use this AE title."""
        return is_within(address, self.addresses)


class Storage(_Section):
    """Where the node keeps what it must not lose. One local disk; network folders do not fsync honestly."""

    folder: Path = Path("/var/lib/anatomynode")
    reserve_mib: Count = 2048
    """With less free space than this, C-STORE answers 0xA700 (out of resources)."""

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "anatomynode.sqlite"

    @property
    def spool(self) -> Path:
        """Received instances."""
        return self.folder / "spool"

    @property
    def results(self) -> Path:
        """RT Structure Sets."""
        return self.folder / "results"


class SeriesRules(_Section):
    """When a series is complete, and which series of a study is contoured."""

    grace_s: Annotated[float, Field(ge=0)] = 2.0
    """Wait after the released association that brought a gapless stack."""
    quiet_period_s: Seconds = 30.0
    """Without better evidence, a series is complete when nothing came for this long."""
    min_slices: Annotated[int, Field(ge=2)] = 20
    """Fewer slices are no planning CT."""
    query_source: str | None = None
    """Name of the destination to ask by C-FIND how many instances the series has."""
    exclude_kernels: tuple[str, ...] = ("bone", "lung", "sharp")
    """A reconstruction whose ConvolutionKernel, SeriesDescription or ProtocolName has such a word loses
    against one without."""


class Shadow(_Section):
    """A candidate that contours what the approved model has contoured; nothing of it is sent."""

    package: str | None = None
    """In the folder of the packages; it needs no approval. None: there is no candidate."""


def _kind_of_approval(value: Any) -> str:
    return "<by package>" if isinstance(value, dict) else "<one>"


Approved = Annotated[
    Annotated[Sha256, Tag("<one>")] | Annotated[dict[str, Sha256], Tag("<by package>")],
    Discriminator(_kind_of_approval),
]


class ModelChoice(_Section):
    """Which network contours, and the ones whose hashes a physicist approved."""

    package: str = "anatomynet-hn"
    folder: Path | None = None
    """Folder of packages; None means those that came with the program."""
    approved_sha256: Approved | None = None
    """Only this model.onnx may send: of `package`, or by package where rules name several. None: nothing is
    sent; jobs are HELD with the reason."""
    shadow: Shadow = Shadow()
    """What is compared with the approved model, whenever the worker has nothing else to do."""
    baseline: Path | None = None
    """The JSON of the commissioning that was signed; `anatomynode check` says what is different now."""

    def approved_of(self, package: str) -> str | None:
        """The sha256 that is approved of a package; None where none is."""
        if isinstance(self.approved_sha256, dict):
            return self.approved_sha256.get(package)
        return self.approved_sha256 if package == self.package else None


class Inference(_Section):
    """Where the network runs."""

    device: Literal["cuda", "cpu"] = "cuda"
    allow_cpu: bool = False
    """Whether the CPU may stand in where CUDA is missing; without it the worker does not start."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of ONNX Runtime; 0 takes one a core."""


class RtStruct(_Section):
    """How contours are drawn and named."""

    contour_mode: Literal["smooth", "voxel"] = "smooth"
    simplify_mm: Annotated[float, Field(ge=0, le=0.1)] = 0.1
    """The furthest that a simplified contour may leave the traced one (smooth mode)."""
    structure_set_label: Label = "AnatomyNode"
    series_description: Annotated[str, Field(max_length=64)] = "AnatomyNode contours (unapproved)"
    template: Path | None = None
    """The clinic's own names and colours, as YAML; None: the model's."""


def _known(flags: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [flag for flag in flags if flag not in known]:
        raise ValueError(f"there is no flag {', '.join(unknown)}; known: {', '.join(known)}")
    return flags


def _may_hold(flags: tuple[str, ...]) -> tuple[str, ...]:
    return _known(flags, (*FLAGS, *SERIES_FLAGS))


Holding = Annotated[tuple[str, ...], AfterValidator(_may_hold)]


class Review(_Section):
    """What becomes of what looks odd; what is in neither list is only told."""

    leave_out: tuple[str, ...] = ()
    """A structure with one of these flags is not drawn, and the job says so."""
    hold: Holding = ()
    """A series, or a structure that is drawn, with one of these flags holds the job until it is released."""

    @field_validator("leave_out")
    @classmethod
    def _are_flags_of_what_is_there(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        return _known(flags, tuple(flag for flag in FLAGS if flag != NOT_FOUND))


class EditionChoice(_Section):
    """How a destination wants its RT Structure Sets; None: as the profile has it."""

    profile: ProfileName = "generic"
    template: Path | None = None
    """None: that of `rt_struct`."""
    structure_set_label: Label | None = None
    """None: that of `rt_struct`."""
    name_length: NameLength | None = None
    name_case: NameCase | None = None
    name_prefix: NamePrefix | None = None
    holes: Holes | None = None
    points_per_contour: PointsPerContour | None = None
    empty_structures: EmptyStructures | None = None
    roi_type: RoiType | None = None
    transfer_syntax: Encoding | None = None

    @property
    def resolved(self) -> Profile:
        """The profile, with what is said here in its place."""
        said = {name: getattr(self, name) for name in Profile.model_fields}
        return PROFILES[self.profile].model_copy(
            update={name: value for name, value in said.items() if value is not None}
        )


FILE_NAME_FIELDS = ("sop_instance_uid", "series_instance_uid", "study_instance_uid", "modality")
"""What the name of a delivered file may say; none of it names a patient."""


def _is_service(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("an http or https URL with a host, and without query or fragment")
    if parts.username is not None or parts.password is not None:
        raise ValueError("no user or password in it: `user`, and the environment or `password_file`")
    return url.rstrip("/")


def _is_file_name(pattern: str) -> str:
    try:
        fields = dict.fromkeys(FILE_NAME_FIELDS, "1.2")
        name, other = pattern.format_map(fields), pattern.format_map({**fields, "sop_instance_uid": "1.3"})
    except (KeyError, IndexError, ValueError, AttributeError) as problem:
        known = ", ".join(f"{{{field}}}" for field in FILE_NAME_FIELDS)
        raise ValueError(f"it may name {known} in braces, and nothing else") from problem
    if name == other:
        raise ValueError("it must name {sop_instance_uid}, or one object would take another's place")
    if "/" in name or name.startswith(".") or not name.isascii() or not name.isprintable():
        raise ValueError("a plain name: printable ASCII, no slash, no dot at its beginning")
    return pattern


class StorageCommitment(_Section):
    """How a destination is asked to commit itself to what it has stored (PS3.4 Annex J)."""

    enabled: bool = False
    """Without it what it has stored counts as there."""
    wait_s: Annotated[float, Field(ge=0, le=60)] = 2.0
    """The association that asked stays open so long for a report on it."""
    report_within_s: Annotated[float, Field(ge=1)] = 600.0
    """Without a report within this time the destination is asked again."""
    max_failures: Count = 3
    """After so many reports that it did not keep the object, the delivery is REFUSED."""
    addresses: Networks = ()
    """Where reports come from, as IP addresses or networks; none: the destination's host."""


class _Receiving(_Section):
    """What every kind of destination has."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    preview: bool = False
    """Whether it also gets pictures of the contours, and of a refusal its words, as Secondary Captures."""
    storage_commitment: StorageCommitment = StorageCommitment()
    hold: Holding = ()
    """Further flags than those of `review.hold` with which this one gets its RT-STRUCT only once a person
    has released it; the others do not wait."""
    senders: tuple[AeTitle, ...] = ()
    """Calling AE titles; with any, it gets only what was made of series that one of them sent."""
    rt_struct: EditionChoice = EditionChoice()


class Destination(_Receiving):
    """A DICOM application that receives the RT Structure Sets by C-STORE."""

    kind: Literal["dicom"] = "dicom"
    host: str
    port: Port
    ae_title: AeTitle
    calling_ae_title: AeTitle | None = None
    """None: the listener's own."""
    tls: Tls | None = None
    connect_timeout_s: Seconds = 10.0
    response_timeout_s: Seconds = 60.0
    """For the association's acceptance and for each answer."""


def _without_commitment(asked: StorageCommitment) -> StorageCommitment:
    if asked.enabled:
        raise ValueError("storage commitment is a service of DICOM associations: kind dicom has it")
    return asked


class WebDestination(_Receiving):
    """A DICOMweb service that receives them by STOW-RS (PS3.18 10.5)."""

    kind: Literal["dicomweb"]
    url: Annotated[str, AfterValidator(_is_service)]
    """Of the service, without `/studies`, such as https://pacs.example/dicom-web."""
    user: str | None = None
    """Its password comes from the environment or `password_file`."""
    password_file: Path | None = None
    token_file: Path | None = None
    """A bearer token, instead of user and password."""
    ca: Path | None = None
    """Certificates that its own must be signed by; None: those that the system trusts."""
    connect_timeout_s: Seconds = 10.0
    response_timeout_s: Seconds = 60.0
    """For the whole answer."""

    _no_commitment = field_validator("storage_commitment")(_without_commitment)

    @model_validator(mode="after")
    def _tells_secrets_to_nobody_else(self) -> WebDestination:
        if self.user is not None and self.token_file is not None:
            raise ValueError("either user and a password, or a token")
        if (self.user is not None or self.token_file is not None) and not self.is_private:
            raise ValueError("passwords and tokens go to https only, or to this machine")
        return self

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read what is sent."""
        parts = urlsplit(self.url)
        return parts.scheme == "https" or parts.hostname in {"localhost", "127.0.0.1", "::1"}

    def secret(self, what: Literal["password", "token"]) -> str | None:
        """From the environment variable ANATOMYNODE_NAME_PASSWORD or ..._TOKEN, else from its file.

        The file is read each time: tokens are renewed while the node runs.

        Raises:
            OSError: the file cannot be read.
        """
        name = re.sub(r"[^A-Z0-9]", "_", self.name.upper())
        file = self.password_file if what == "password" else self.token_file
        said = os.environ.get(f"ANATOMYNODE_{name}_{what.upper()}")
        return said or (None if file is None else file.read_text(encoding="utf-8").strip())


class FolderDestination(_Receiving):
    """A folder on this machine's disks that receives them as files."""

    kind: Literal["folder"]
    folder: Path
    """Must be there: a share that is not mounted gets nothing."""
    file_name: Annotated[str, AfterValidator(_is_file_name)] = "{sop_instance_uid}.dcm"
    """May name the fields of `FILE_NAME_FIELDS` in braces."""
    group_may_read: bool = True
    """Whether the files are for the folder's group too (0640), or for this program's account alone (0600)."""

    _no_commitment = field_validator("storage_commitment")(_without_commitment)


def _kind_of_destination(value: Any) -> str:
    kind = value.get("kind", "dicom") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"<{kind}>"


AnyDestination = Destination | WebDestination | FolderDestination
_OneOfThem = Annotated[
    Annotated[Destination, Tag("<dicom>")]
    | Annotated[WebDestination, Tag("<dicomweb>")]
    | Annotated[FolderDestination, Tag("<folder>")],
    Discriminator(
        _kind_of_destination,
        custom_error_type="kind",
        custom_error_message="kind is dicom, dicomweb or folder",
    ),
]


class Retry(_Section):
    """How transient failures of a delivery are tried again: until cancelled."""

    first_delay_s: Seconds = 5.0
    max_delay_s: Annotated[float, Field(gt=0, le=900)] = 900.0
    alert_after_s: Seconds = 3600.0


class Retention(_Section):
    """How long what is finished is kept."""

    slices_days: Annotated[float, Field(ge=1)] = 30.0
    """Received slices."""
    results_days: Annotated[float, Field(ge=1)] = 365.0
    """RT-STRUCTs and pictures."""
    room_mib: Count = 8192
    """With less free space beyond the storage's reserve, slices go before they are of age, oldest first."""

    @model_validator(mode="after")
    def _slices_go_first(self) -> Retention:
        if self.results_days < self.slices_days:
            raise ValueError(
                f"results_days is {self.results_days:g}, but the slices stay for {self.slices_days:g} days: "
                "results are kept at least as long as what they were made of"
            )
        return self


class Page(_Section):
    """The page to look at: jobs, their timelines and their contours on the CT; it changes nothing."""

    enabled: bool | None = None
    """None: where `http.host` is loopback."""
    token: Annotated[str, Field(min_length=16)] | None = Field(default=None, repr=False)
    """Asked for as the password; better given by the environment variable ANATOMYNODE_PAGE_TOKEN."""
    behind_proxy: bool = False
    """Whether a reverse proxy stands in front that lets in only whom it knows."""


class Http(_Section):
    """`/metrics`, `/healthz` and `/readyz`, and the page."""

    host: str = "127.0.0.1"
    port: Port = 9104
    page: Page = Page()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can call."""
        return is_loopback(self.host)

    @property
    def shows_page(self) -> bool:
        """Whether the page is served."""
        return self.is_loopback if self.page.enabled is None else self.page.enabled

    @model_validator(mode="after")
    def _page_is_guarded(self) -> Http:
        page = self.page
        if page.enabled and not self.is_loopback and page.token is None and not page.behind_proxy:
            raise ValueError(
                f"page.enabled is true and host is {self.host}: set page.token (or {PAGE_TOKEN_VARIABLE}), "
                "or say page.behind_proxy: true where a reverse proxy asks who comes"
            )
        return self


class AuditStreamChoice(_Section):
    """Where DICOM audit messages (PS3.15 A.5) go, which carry patient IDs."""

    transport: Literal["udp", "tls", "file"] | None = None
    """syslog by RFC 5426 or RFC 5425, or lines of a file; None: there is no such stream."""
    host: str = "127.0.0.1"
    port: Port = 6514
    tls: Tls | None = None
    """For the transport `tls`; both sides show certificates."""
    file: Path | None = None
    """For the transport `file`."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> AuditStreamChoice:
        if self.transport == "tls" and self.tls is None:
            raise ValueError("the transport tls wants certificate, key and ca in audit_stream.tls")
        if self.transport == "file" and self.file is None:
            raise ValueError("the transport file wants audit_stream.file")
        return self


class Logging(_Section):
    """What is written to the standard error stream."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Config(_Section):
    """The whole configuration."""

    listener: Listener = Listener()
    peers: tuple[Peer, ...]
    storage: Storage = Storage()
    series: SeriesRules = SeriesRules()
    model: ModelChoice = ModelChoice()
    inference: Inference = Inference()
    rt_struct: RtStruct = RtStruct()
    review: Review = Review()
    routing: tuple[Rule, ...] = ()
    """The first rule that a series meets decides; none at all: `model.package`, for all destinations."""
    destinations: tuple[_OneOfThem, ...]
    retry: Retry = Retry()
    retention: Retention = Retention()
    http: Http = Http()
    audit_stream: AuditStreamChoice = AuditStreamChoice()
    logging: Logging = Logging()
    hash_key: Annotated[str, Field(min_length=16)] | None = Field(default=None, repr=False)
    """Secret key under which patient and accession numbers are hashed; better given by the environment
    variable ANATOMYNODE_HASH_KEY. None: a random one is made once and kept in the storage folder."""

    @property
    def dicom_destinations(self) -> tuple[Destination, ...]:
        """Those that are reached by DICOM associations."""
        return tuple(one for one in self.destinations if isinstance(one, Destination))

    @property
    def tls_by_name(self) -> dict[str, Tls]:
        """Whose TLS is configured: `listener`, and destinations by their names."""
        own = {"listener": self.listener.tls, "audit_stream": self.audit_stream.tls}
        named = own | {one.name: one.tls for one in self.dicom_destinations}
        return {name: tls for name, tls in named.items() if tls is not None}

    @model_validator(mode="after")
    def _is_consistent(self) -> Config:
        names = [destination.name for destination in self.destinations]
        problems = [
            f"destinations: two are called {name!r}; give each its own name"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        source = self.series.query_source
        to_ask = [destination.name for destination in self.dicom_destinations]
        if source is not None and source not in to_ask:
            problems.append(f"series.query_source: there is no destination {source!r}; known: {to_ask}")
        if RETURN_TO_SENDER in names:
            problems.append(
                f"destinations: none may be called {RETURN_TO_SENDER}: rules mean something by it"
            )
        peers = [peer.ae_title.strip() for peer in self.peers]
        problems += routing.problems(self.routing, self.destinations, peers, self.listener.ae_titles)
        if problems:
            raise ValueError("; ".join(problems))
        return self


def read_config(path: Path) -> Config:
    """Read and check a configuration.

    Raises:
        ConfigurationError: with every problem, each with the path of its key.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigurationError((f"{path}: cannot be read: {problem.strerror}",)) from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigurationError((f"{path}: is no YAML{_line_of(problem)}",)) from problem
    if not isinstance(raw, dict):
        raise ConfigurationError((f"{path}: must hold keys and values, such as `peers:`",))
    if os.environ.get(SECRET_VARIABLE):
        raw["hash_key"] = os.environ[SECRET_VARIABLE]
    _put_page_token(raw)
    try:
        return Config.model_validate(raw)
    except ValidationError as problem:
        raise ConfigurationError(
            tuple(f"{path}: {_where(error['loc'])}: {error['msg']}" for error in problem.errors())
        ) from problem


def _put_page_token(raw: dict[str, Any]) -> None:
    """The environment's token in its place; what is no section there, the models complain of."""
    token, http = os.environ.get(PAGE_TOKEN_VARIABLE), raw.setdefault("http", {})
    if token and isinstance(http, dict) and isinstance(http.setdefault("page", {}), dict):
        http["page"]["token"] = token


def _line_of(problem: Exception) -> str:
    """Where YAML stopped; its own message would quote the line, and that may hold the secret key."""
    mark = getattr(problem, "problem_mark", None)
    return "" if mark is None else f": line {mark.line + 1}, column {mark.column + 1}"


def _where(location: tuple[int | str, ...]) -> str:
    """`("peers", 0, "ae_title")` as `peers[0].ae_title`, without the name of an alternative, `<...>`."""
    words = ""
    for part in location:
        if isinstance(part, str) and part.startswith("<"):
            continue
        words += f"[{part}]" if isinstance(part, int) else f".{part}" if words else part
    return words or "the whole file"
