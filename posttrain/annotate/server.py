"""The page on which people judge a round's tasks: `posttrain annotate serve ROUND`.

Server-rendered, no build step, nothing from elsewhere; works without scripts. Who somebody is
stands in a personal link; requests of other sites are refused. Knows pages and requests; what is
kept and refused, the store knows.

    uvicorn.run(create_app(store, Site(title="my plan, round 1")), host="127.0.0.1", port=8800)
"""

import hmac
import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Form, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posttrain.annotate.answers import LONGEST_EDIT, Answer, Refused
from posttrain.annotate.rendering import as_html, changes
from posttrain.annotate.store import Offered, Store
from posttrain.rows import Message as Turn
from posttrain.rows import Strength

HERE = Path(__file__).parent
COOKIE = "posttrain_annotator"
LONGEST_BODY = 12 * LONGEST_EDIT + 20_000
"""Bytes of a request; a longer one is refused before it is read."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer` browsers send forms with the origin `null`.
    "Referrer-Policy": "same-origin",
}
STRENGTHS = tuple(reversed(Strength))


@dataclass(frozen=True)
class Site:
    """What a page shows of its collection, and where it may be asked from."""

    title: str
    hosts: tuple[str, ...] = ()
    """Values of `Host` that are answered; none: all. Another site's name that points here is
    told by it."""


def create_app(store: Store, site: Site) -> FastAPI:
    """The application of one collection."""
    app = FastAPI(title=site.title, docs_url=None, redoc_url=None, openapi_url=None)
    pages = _Pages(store, site)

    app.add_middleware(_Guard, site=site)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return HTMLResponse(pages.render("refused", reason=str(error)), 409)

    @app.get("/a/{token}")
    def enter(token: str, request: Request) -> Response:
        if store.annotator_of(token) is None:
            return HTMLResponse(pages.render("stranger"), 403)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            COOKIE,
            token,
            max_age=30 * 86400,
            httponly=True,
            # A link in a mail is another site's; forms are guarded by their own check.
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return response

    @app.get("/")
    def task(request: Request) -> Response:
        token = request.cookies.get(COOKIE, "")
        annotator = store.annotator_of(token)
        if annotator is None:
            return HTMLResponse(pages.render("stranger"), 403)
        return HTMLResponse(pages.task(annotator, token))

    @app.post("/judge")
    def judge(
        request: Request,
        check: Annotated[str, Form()] = "",
        task: Annotated[str, Form()] = "",
        order: Annotated[str, Form()] = "",
        verdict: Annotated[str, Form()] = "",
        edited: Annotated[str, Form()] = "",
        editing: Annotated[str, Form()] = "",
        reason: Annotated[str, Form()] = "",
    ) -> Response:
        annotator = pages.writer(request, check)
        choice, _, strength = verdict.partition("/")
        if choice not in ("first", "second", "tie", "skip"):
            raise Refused("choose one of the answers first")
        if strength and strength not in [str(one) for one in Strength]:
            raise Refused(f"there is no strength {strength!r}")
        answer = Answer(
            choice=choice,  # type: ignore[arg-type]
            strength=Strength(strength) if strength else None,
            # Browsers send lines with the ends of another age.
            edited=edited.replace("\r\n", "\n") if editing == choice else None,
            reason=reason,
        )
        if order not in ("a", "b"):
            raise Refused("the form does not say which response stood first")
        store.submit(annotator, task, answer, order)  # type: ignore[arg-type]
        return RedirectResponse("/", 303)

    @app.post("/undo")
    def undo(request: Request, check: Annotated[str, Form()] = "") -> Response:
        store.undo(pages.writer(request, check))
        return RedirectResponse("/", 303)

    @app.post("/diff")
    async def diff(request: Request) -> Response:
        """What an edit changes, for the page to show while somebody types."""
        await run_in_threadpool(pages.writer, request, request.headers.get("X-Check", ""))
        try:
            texts = json.loads(await request.body())
            before, after = str(texts["before"]), str(texts["after"])
            (before + after).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            return JSONResponse({"error": "expected {before, after}"}, 400)
        return JSONResponse(await run_in_threadpool(changes, before, after))

    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    return app


class _Guard:
    """Refuses what is not even looked at, and sends the headers that every answer has."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app, self._site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = _refusal(Request(scope), self._site)
        await (refusal or self._app)(scope, receive, send_guarded)


def _refusal(request: Request, site: Site) -> Response | None:
    """Why a request is not even looked at."""
    if site.hosts and request.headers.get("host", "") not in site.hosts:
        return Response("unknown host\n", 421)
    if request.method in ("GET", "HEAD"):
        return None
    origin = request.headers.get("origin")
    # The scheme is a proxy's affair.
    here = request.headers.get("host", "")
    cross = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    if cross or (origin is not None and urlsplit(origin).netloc != here):
        return Response("requests of other sites are refused\n", 403)
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > LONGEST_BODY:
        return Response(f"a request holds at most {LONGEST_BODY:,} bytes\n", 413)
    return None


class _Pages:
    """Pages as text."""

    def __init__(self, store: Store, site: Site) -> None:
        self._store, self._site = store, site
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=select_autoescape(default_for_string=True, default=True),
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, name: str, **values: Any) -> str:
        """A page by the name of its template."""
        template = self._templates.get_template(f"{name}.html.jinja")
        return template.render(title=self._site.title, **values)

    def task(self, annotator: str, token: str) -> str:
        """The annotator's task, or that there is none."""
        if self._store.closed:
            return self.render("done", annotator=annotator, closed=True, progress=None, check="")
        offered = self._store.next_task(annotator)
        progress = self._store.progress(annotator)
        values = {"annotator": annotator, "progress": progress, "check": _check(token)}
        if offered is None:
            return self.render("done", closed=False, **values)
        return self.render("task", **values, **_shown(offered), strengths=STRENGTHS)

    def writer(self, request: Request, check: str) -> str:
        """Who sends a form.

        Raises:
            Refused: nobody that is known, or the form is not one of ours.
        """
        token = request.cookies.get(COOKIE, "")
        annotator = self._store.annotator_of(token)
        if annotator is None or not hmac.compare_digest(check.encode(), _check(token).encode()):
            raise Refused("open your personal link again: this page does not know you")
        return annotator


def _check(token: str) -> str:
    """What a form of ours holds and another site cannot know."""
    return hmac.new(token.encode(), b"form", sha256).hexdigest()


def _shown(offered: Offered) -> dict[str, Any]:
    """A task as the template takes it: turns with their HTML, responses in the order shown."""
    task = offered.task
    return {
        "task": task,
        "order": offered.first,
        "dialog": [_turn(turn) for turn in task.prompt],
        "responses": [
            {"name": name, "text": side[-1].content, "turns": [_turn(turn) for turn in side]}
            for name, side in zip(("first", "second"), task.sides(offered.first), strict=True)
        ],
    }


def _turn(turn: Turn) -> dict[str, Any]:
    calls = [json.dumps(call, ensure_ascii=False, indent=1) for call in turn.tool_calls or ()]
    return {"role": turn.role, "html": as_html(turn.content), "calls": calls}
