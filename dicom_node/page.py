"""The page to look at: jobs, one job's timeline, its contours on the CT, turnaround.

Owns the paths, who may look, and what a browser is told to allow; the only door to jinja2.
Speaks HTTP GET and server-rendered HTML, which needs no script and nothing from elsewhere.
Never changes anything, never names a patient, and never draws in this process.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Engine
from werkzeug import Request, Response
from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, NotFound, Unauthorized
from werkzeug.routing import Map, Rule

from dicom_node import page_facts, story, turnaround_plot
from dicom_node.book_shelf import Book, BusyError, NoBookError, Shelf
from dicom_node.completeness import in_words
from dicom_node.config import Config, is_loopback
from dicom_node.database import reading
from dicom_node.states import JobState
from dicom_node.story import NoSuchJobError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LENGTH = 50
"""Jobs on one page."""
DAYS = 14
"""Of turnaround."""
LOOK_AGAIN_S = 2
MOST_ROIS = 64

POLICY = "; ".join(
    f"{what} {whence}"
    for what, whence in {
        "default-src": "'none'",
        "style-src": "'self'",
        "img-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }.items()
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Pictures of patients stay in no cache.
    "Cache-Control": "no-store",
}

MEANINGS = {
    JobState.QUEUED: "waits for the worker",
    JobState.RUNNING: "is contoured now",
    JobState.READY: "checked and on disk, on its way to the destinations",
    JobState.SENT: "every destination has it",
    JobState.REJECTED: "not ours to contour",
    JobState.FAILED: "somebody must look",
    JobState.CANCELLED: "a person or a later revision ended it",
    JobState.IGNORED: "a rule says so, or another series of the study was chosen",
    JobState.HELD: "waits until a person releases it",
}

PATHS = Map(
    [
        Rule("/", endpoint="jobs"),
        Rule("/jobs/<int:number>", endpoint="job"),
        Rule("/jobs/<int:number>/preview", endpoint="preview"),
        Rule("/jobs/<int:number>/preview/<int:slice_number>.jpg", endpoint="picture"),
        Rule("/page.css", endpoint="style"),
    ],
    strict_slashes=False,
    merge_slashes=False,  # each path has one name; nothing is redirected
)


class Page:
    """The WSGI application; any thread may call it."""

    def __init__(self, engine: Engine, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._settings = config.http
        self._clock = clock
        self._shelf = Shelf(config.storage.folder)
        self._templates = Environment(
            loader=PackageLoader("dicom_node"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.filters |= {"duration": duration, "clock": clock_words, "words": plain_words}
        self._templates.globals |= {"meanings": MEANINGS, "states": tuple(JobState)}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        try:
            response = self._answer(Request(environ))
        except HTTPException as refusal:
            response = self._refusal(refusal)
        response.headers.extend(HEADERS)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        self._admit(request)
        endpoint, values = PATHS.bind_to_environ(request.environ).match()
        answer: Callable[..., Response] = getattr(self, f"_{endpoint}")
        try:
            return answer(request, **values)
        except NoSuchJobError as missing:
            raise NotFound(missing.reason) from missing
        except BusyError as busy:
            return self._come_again(busy)

    # --- who may look ------------------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        """Let in who has the token, whom a proxy has let in, or who calls this machine by its own name.

        Without the last, a page from elsewhere could make a browser here read this one under the
        other page's name (DNS rebinding).
        """
        page = self._settings.page
        if page.token is not None:
            if not _has_token(request, page.token):
                refusal = Unauthorized(
                    "the token of http.page.token is the password; the user's name is free"
                )
                refusal.www_authenticate = None
                raise refusal
        elif not page.behind_proxy and not is_loopback(_host(request)):
            raise Forbidden("call this page by the name localhost, or set http.page.token")

    # --- what there is to see ----------------------------------------------------------------------

    def _jobs(self, request: Request) -> Response:
        state, before, now = _state(request), _number(request, "before"), self._clock()
        with reading(self._engine) as session:
            sheet = page_facts.sheet(session, state, before, LENGTH, now)
            counts = page_facts.counts(session)
            arrived = page_facts.arrived(session, turnaround_plot.begin_of(DAYS, now))
        plot = turnaround_plot.plot(arrived, DAYS, now)
        return self._page("jobs.html", sheet=sheet, counts=counts, chosen=state, before=before, plot=plot)

    def _job(self, request: Request, number: int) -> Response:
        told = story.show(self._engine, number)
        with reading(self._engine) as session:
            stages = page_facts.stages_of(session, number)
        evidence = told.series["evidence"]
        return self._page(
            "job.html",
            story=told,
            stages=stages,
            evidence=None if evidence is None else in_words(evidence),
            has_pictures=told.job["rt_struct_file"] is not None,
        )

    def _preview(self, request: Request, number: int) -> Response:
        told, book = story.show(self._engine, number), self._book(number)
        rois = {roi["name"]: roi for roi in (told.report or {}).get("rois", ())}
        return self._page("preview.html", story=told, book=book.told, rois=rois)

    def _picture(self, request: Request, number: int, slice_number: int) -> Response:
        picture = self._book(number).picture(slice_number)
        if picture is None:
            raise NotFound(f"job {number} has no picture of slice {slice_number}")
        return Response(picture, content_type="image/jpeg")

    def _book(self, number: int) -> Book:
        with reading(self._engine) as session:
            job = story.job_of(session, number)
            file, sha256 = job.rt_struct_file, job.rt_struct_sha256
        if file is None or sha256 is None:
            raise NotFound(f"job {number} has no RT-STRUCT that could be shown")
        try:
            return self._shelf.book(number, sha256)
        except NoBookError as problem:
            raise NotFound(problem.reason) from problem

    def _style(self, request: Request) -> Response:
        return Response(self._css, content_type="text/css; charset=utf-8")

    @cached_property
    def _css(self) -> str:
        """With a switch for each ROI: what is not ticked is not drawn."""
        css = files("dicom_node").joinpath("templates/page.css").read_text(encoding="utf-8")
        numbers = range(1, MOST_ROIS + 1)
        return css + "".join(
            f"body:has(#roi{n}:not(:checked)) .roi{n} {{ display: none; }}\n" for n in numbers
        )

    # --- how it is told ----------------------------------------------------------------------------

    def _page(self, template: str, **told: Any) -> Response:
        now = self._clock()
        html = self._templates.get_template(template).render(now=now, **told)
        return Response(html, content_type="text/html; charset=utf-8")

    def _come_again(self, busy: BusyError) -> Response:
        """The browser does so by itself."""
        response = self._page("message.html", title="One moment", message=busy.reason)
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        response.headers["Retry-After"] = response.headers["Refresh"] = str(LOOK_AGAIN_S)
        return response

    def _refusal(self, refusal: HTTPException) -> Response:
        """In our words; the header asks the browser for the token."""
        status = refusal.code or HTTPStatus.INTERNAL_SERVER_ERROR
        response = self._page("message.html", title=refusal.name, message=refusal.description or "")
        response.status_code = status
        if status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = 'Basic realm="AnatomyNode", charset="UTF-8"'
        return response


def _has_token(request: Request, token: str) -> bool:
    """As the password of Basic authentication (RFC 7617), or as a Bearer token (RFC 6750)."""
    said = request.authorization
    if said is None:
        return False
    shown = (said.token if said.type == "bearer" else said.password) or ""
    return hmac.compare_digest(shown.encode(), token.encode())


def _host(request: Request) -> str:
    """Whom the browser believes to call, without the port."""
    host = request.headers.get("Host", "")
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _state(request: Request) -> JobState | None:
    said = request.args.get("state")
    try:
        return JobState(said) if said else None
    except ValueError:
        raise BadRequest(f"there is no such state; known: {', '.join(JobState)}") from None


def _number(request: Request, name: str) -> int | None:
    said = request.args.get(name)
    if said is None:
        return None
    if not said.isascii() or not said.isdigit() or len(said) > 15:
        raise BadRequest(f"{name} is the number of a job")
    return int(said)


def duration(seconds: float) -> str:
    """Such as `0.42 s`, `12.3 s`, `3 min 20 s`, `5 h 12 min`, `3 d 4 h`."""
    if seconds < 0.01:
        return "< 0.01 s"
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for size, large, small in ((60, "min", "s"), (60, "h", "min")):
        whole, rest = divmod(whole, size)
        if whole < (60 if large == "min" else 24):
            return _two(whole, large, rest, small)
    days, hours = divmod(whole, 24)
    return _two(days, "d", hours, "h")


def _two(large: int, unit: str, small: int, smaller_unit: str) -> str:
    return f"{large} {unit}" + (f" {small} {smaller_unit}" if small else "")


def clock_words(at: float | str) -> str:
    """UTC, to the second, of epoch seconds or an ISO 8601 text."""
    iso = at if isinstance(at, str) else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    return iso[:19].replace("T", " ")


def plain_words(word: str) -> str:
    """`low_confidence` as `low confidence`."""
    return word.replace("_", " ")
