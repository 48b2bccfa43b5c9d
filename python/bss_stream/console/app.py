"""The application: routes, who may take them, and what every answer carries."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bss_stream.config_check import LOOPBACK
from bss_stream.console.access import COOKIE, Access
from bss_stream.console.context import Context
from bss_stream.console.forms import FORM_BYTES_MAX
from bss_stream.console.pages.fleets import Fleets
from bss_stream.console.pages.ledger import Ledger
from bss_stream.console.pages.letters import Letters
from bss_stream.console.pages.live import Live
from bss_stream.console.pages.login import Login
from bss_stream.console.pages.operator import Operator
from bss_stream.console.pages.plans import Plans
from bss_stream.console.pages.stations import Stations
from bss_stream.console.render import static_directory
from bss_stream.errors import BssStreamError, LogError, SinkError

logger = logging.getLogger(__name__)

PUBLIC: Final = ("/login", "/healthz", "/static/")
"""What is to be had without a session: how to get one, and whether the process runs."""

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=()",
}
HTTPS_ONLY: Final = "max-age=31536000"


def make_app(context: Context, *, secure: bool) -> tuple[Starlette, Live]:
    """The application, and the page whose streams have to be stopped before it.

    `secure` says that browsers reach it by HTTPS.
    """
    live = Live(context)
    pages = (
        live,
        Stations(context),
        Operator(context),
        Fleets(context),
        Plans(context),
        Ledger(context),
        Letters(context),
    )
    routes = [
        *(route for page in pages for route in page.routes),
        *Login(context, secure=secure).routes,
        Route("/healthz", _healthz),
        Mount("/static", StaticFiles(directory=static_directory())),
    ]
    errors = _Errors(context)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(context.watch.run(), name="bss-console-watch")
        try:
            yield
        finally:
            live.stop()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await context.database.close()
            await context.reports.close()

    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(SecurityHeaders, secure=secure),
            Middleware(Gate, access=context.access),
        ],
        exception_handlers={
            HTTPException: errors.refused,
            BssStreamError: errors.away,
            Exception: errors.failed,
        },
        lifespan=lifespan,
        max_body_size=FORM_BYTES_MAX,
    )
    return app, live


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


class Gate:
    """Lets in who has logged in; without a token, whoever asks this machine by its own name."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        session = self._access.session(connection.cookies.get(COOKIE))
        # A state of the request's own: that of the application would be shared.
        scope["state"] = {
            **scope.get("state", {}),
            "session": session,
            "has_token": self._access.has_token,
        }
        refusal = None
        if not _is_public(scope["path"]):
            if not self._access.has_token:
                refusal = _anybody(scope)
            elif session is None:
                refusal = _stranger(scope)
        await (refusal or self._app)(scope, receive, send)


def _is_public(path: str) -> bool:
    return any(path == one or (one.endswith("/") and path.startswith(one)) for one in PUBLIC)


def _anybody(scope: Scope) -> Response | None:
    """Reading only; and not under a name that some page has had resolved to this machine."""
    host = Headers(scope=scope).get("host", "")
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.strip("[]") not in LOOPBACK:
        return PlainTextResponse(f"Ask by {LOOPBACK[0]}: there is no token to log in with.\n", 403)
    if scope["method"] not in ("GET", "HEAD"):
        return PlainTextResponse(
            "Set [console] token_file: nothing changes without a login.\n", 403
        )
    return None


def _stranger(scope: Scope) -> Response:
    is_page = scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")
    if not is_page:
        return PlainTextResponse("Log in first.\n", 401)
    query = scope.get("query_string", b"").decode("latin-1")
    after = scope["path"] + (f"?{query}" if query else "")
    return RedirectResponse(f"/login?next={quote(after, safe='')}", 303)


class SecurityHeaders:
    """What a browser has to know of every answer."""

    def __init__(self, app: ASGIApp, secure: bool) -> None:
        self._app = app
        self._headers = {**HEADERS, **({"Strict-Transport-Security": HTTPS_ONLY} if secure else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                is_static = scope["path"].startswith("/static/")
                headers.setdefault("Cache-Control", "no-cache" if is_static else "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class _Errors:
    """Pages instead of what was asked for."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = {404: "Not found", 403: "Not allowed", 503: "Too many"}.get(error.status_code)
        detail = error.detail if title or error.status_code == 400 else ""
        return self._page(request, error.status_code, title or "This cannot be done", detail)

    async def away(self, request: Request, error: Exception) -> Response:
        """The database or the log: the page asks again by itself."""
        logger.warning("%s: %s", request.url.path, error)
        what = {SinkError: "The ledger database is away", LogError: "The log is away"}
        title = next((text for kind, text in what.items() if isinstance(error, kind)), "Not now")
        return self._page(request, 503, title, str(error), is_away=True)

    async def failed(self, request: Request, error: Exception) -> Response:
        logger.error("%s failed", request.url.path, exc_info=error)
        return self._page(request, 500, "A fault of the console", "Its log says more.")

    def _page(
        self, request: Request, status: int, title: str, detail: str, *, is_away: bool = False
    ) -> Response:
        return self._context.renderer.page(
            "error.html", request.scope, status=status, title=title, detail=detail, is_away=is_away
        )
