"""Login by token, and logout."""

import logging
import math

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from bss_stream.console import forms
from bss_stream.console.access import COOKIE, Session, is_form_of
from bss_stream.console.context import Context

logger = logging.getLogger(__name__)


class Login:
    """The form, and what it comes to."""

    def __init__(self, context: Context, *, secure: bool) -> None:
        """`secure`: browsers send the cookie over HTTPS alone."""
        self._context = context
        self._secure = secure

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/login", self.form, methods=["GET"]),
            Route("/login", self.log_in, methods=["POST"]),
            Route("/logout", self.log_out, methods=["POST"]),
        ]

    async def form(self, request: Request) -> Response:
        if not self._context.access.has_token:
            return RedirectResponse("/", 303)
        return self._page(request, forms.asked(request, "next"))

    def _page(self, request: Request, after: str, fault: str = "", status: int = 200) -> Response:
        return self._context.renderer.page(
            "login.html", request.scope, after=forms.local_path(after), fault=fault, status=status
        )

    async def log_in(self, request: Request) -> Response:
        access = self._context.access
        address = request.client.host if request.client else ""
        fields = await forms.form(request)
        after = fields.get("next", "")
        wait_s = math.ceil(access.wait_ms(address) / 1000)
        if wait_s > 0:
            fault = f"Too many wrong tokens: wait {wait_s} seconds."
            page = self._page(request, after, fault, 429)
            page.headers["Retry-After"] = str(wait_s)
            return page
        cookie = access.log_in(fields.get("token", ""), address)
        if cookie is None:
            logger.warning("a wrong token from %s", address)
            return self._page(request, after, "This is not the token.", 401)
        response = RedirectResponse(forms.local_path(after), 303)
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=access.session_ms // 1000,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )
        return response

    async def log_out(self, request: Request) -> Response:
        session: Session | None = request.scope["state"]["session"]
        fields = await forms.form(request)
        if session is None or not is_form_of(session, fields.get("csrf", "")):
            raise HTTPException(403, "This form was not made for your session: open it again.")
        self._context.access.log_out(session)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(
            COOKIE, path="/", secure=self._secure, httponly=True, samesite="strict"
        )
        return response
