"""Calls of Odoo's external API, and what an answer that is none means.

Two ways to say the same: JSON-RPC (`/jsonrpc`, services common and object) and JSON-2
(`/json/2/<model>/<method>`, from Odoo 19 on). A call is one transaction in Odoo.
"""

import asyncio
import json
import logging
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final, Literal

import httpx

from bss_stream import tls
from bss_stream.errors import (
    OdooAccessError,
    OdooRefusedError,
    OdooUnavailableError,
)
from bss_stream.validation import Secret

RESPONSE_BYTES_MAX: Final = 16 * 1024 * 1024
MESSAGE_SHOWN_MAX: Final = 500
VERSION_WITH_HAS_ACCESS: Final = 18

Operation = Literal["read", "write", "create"]

CONTEXT: Final = {"lang": "en_US", "tz": "UTC"}
"""Odoo reads times as the user's local ones, and selections in the user's language."""

DENIED: Final = frozenset(
    (
        "odoo.exceptions.AccessDenied",
        "odoo.http.SessionExpiredException",
        "werkzeug.exceptions.Unauthorized",
    )
)

PASSING: Final = frozenset(
    (
        "builtins.MemoryError",
        "odoo.exceptions.ConcurrencyError",
        "odoo.exceptions.LockError",
        "psycopg2.InterfaceError",
        "psycopg2.OperationalError",
        "psycopg2.pool.PoolError",
        "psycopg2.errors.AdminShutdown",
        "psycopg2.errors.CannotConnectNow",
        "psycopg2.errors.CrashShutdown",
        "psycopg2.errors.DeadlockDetected",
        "psycopg2.errors.DiskFull",
        "psycopg2.errors.InFailedSqlTransaction",
        "psycopg2.errors.LockNotAvailable",
        "psycopg2.errors.OutOfMemory",
        "psycopg2.errors.QueryCanceled",
        "psycopg2.errors.ReadOnlySqlTransaction",
        "psycopg2.errors.SerializationFailure",
        "psycopg2.errors.TooManyConnections",
        "werkzeug.exceptions.ServiceUnavailable",
        "werkzeug.exceptions.TooManyRequests",
    )
)
"""Exceptions in Odoo that say nothing about the call: it may well succeed later."""

PASSING_STATUSES: Final = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)
"""Beside those of 500 and above."""

_NO_DATABASE: Final = re.compile('database ".*" does not exist')

_PASSING_MESSAGE: Final = re.compile(
    "could not serialize access|deadlock detected|could not obtain lock|due to lock timeout"
    "|due to statement timeout|current transaction is aborted"
)
"""PostgreSQL's words for the same, where Odoo gives no exception's name."""

# httpx would log every call, and httpcore the headers of JSON-2, which hold the key.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where Odoo is, and as whom to call it."""

    url: str
    api: Literal["jsonrpc", "json2"] = "jsonrpc"
    database: str
    username: str | None = None
    key: Secret
    tls: ssl.SSLContext | None = None
    timeout_s: float = 60.0
    calls_per_s_max: float = 10.0


class OdooClient:
    """One user of one Odoo. Every method raises OdooUnavailableError for what may pass (network,
    5xx, locks), OdooAccessError where the user is not let in, OdooRefusedError for the rest."""

    def __init__(self, connection: Connection) -> None:
        self._to = connection
        self._http = httpx.AsyncClient(
            base_url=connection.url,
            timeout=connection.timeout_s,
            verify=connection.tls or True,
            headers={"User-Agent": "bss-stream"},
            # A proxy out of the environment is nobody's decision here.
            trust_env=False,
        )
        self._user: int | None = None
        self._calls = 0
        self._next_s = 0.0

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()

    async def call(
        self, model: str, method: str, *, ids: Sequence[int] | None = None, **arguments: Any
    ) -> Any:
        """What a method of a model returns; `ids` for one that works on records.

        Numbers with a point come as Decimal, digit for digit as Odoo wrote them.
        """
        if self._to.api == "json2":
            body = {**arguments, "context": CONTEXT}
            if ids is not None:
                body["ids"] = list(ids)
            return await self._json2(f"{model}/{method}", body)
        positional = [] if ids is None else [list(ids)]
        named = {**arguments, "context": CONTEXT}
        login = (self._to.database, await self._logged_in(), self._to.key.reveal())
        try:
            return await self._rpc("object", "execute_kw", *login, model, method, positional, named)
        except OdooAccessError:
            self._user = None
            raise

    async def may(self, model: str, operation: Operation) -> bool:
        """Whether the user has this right on a model."""
        if await self._version() >= VERSION_WITH_HAS_ACCESS:
            return bool(await self.call(model, "has_access", ids=[], operation=operation))
        method = "check_access_rights"
        return bool(await self.call(model, method, operation=operation, raise_exception=False))

    async def _version(self) -> int:
        """Odoo's major version."""
        if self._to.api == "json2":
            return VERSION_WITH_HAS_ACCESS + 1
        found = await self._rpc("common", "version")
        return int(found["server_version_info"][0])

    async def _logged_in(self) -> int:
        if self._user is None:
            user = await self._rpc(
                *("common", "authenticate", self._to.database, self._to.username),
                *(self._to.key.reveal(), {}),
            )
            if not user:
                raise OdooAccessError(
                    f"Odoo at {self._to.url} does not know the user or the key: check "
                    "odoo.database, odoo.username, and the key in odoo.api_key_file"
                )
            self._user = int(user)
        return self._user

    async def _rpc(self, service: str, method: str, *arguments: object) -> Any:
        self._calls += 1
        params = {"service": service, "method": method, "args": arguments}
        body = {"jsonrpc": "2.0", "method": "call", "id": self._calls, "params": params}
        status, answer = await self._post("/jsonrpc", body, {})
        if not isinstance(answer, dict):
            raise self._no_answer(status)
        error = answer.get("error")
        if error is not None:
            data = error.get("data") or {}
            raise self._fault(
                str(data.get("name", "")), str(data.get("message") or error.get("message", ""))
            )
        if status != HTTPStatus.OK:
            raise self._no_answer(status)
        # A method that returns nothing has no result at all in the answer.
        return answer.get("result")

    async def _json2(self, path: str, body: Mapping[str, object]) -> Any:
        headers = {
            "Authorization": f"bearer {self._to.key.reveal()}",
            "X-Odoo-Database": self._to.database,
        }
        status, answer = await self._post(f"/json/2/{path}", body, headers)
        if status == HTTPStatus.OK and answer is not ...:
            return answer
        if isinstance(answer, dict) and isinstance(answer.get("name"), str):
            raise self._fault(answer["name"], str(answer.get("message", "")))
        raise self._no_answer(status)

    async def _post(
        self, path: str, body: Mapping[str, object], headers: Mapping[str, str]
    ) -> tuple[int, Any]:
        """Status and decoded body; `...` stands for a body that is no JSON."""
        await self._pace()
        try:
            async with self._http.stream("POST", path, json=body, headers=headers) as response:
                content = bytearray()
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > RESPONSE_BYTES_MAX:
                        raise OdooRefusedError(
                            f"Odoo answers with more than {RESPONSE_BYTES_MAX} bytes"
                        )
        except httpx.HTTPError as error:
            advice = tls.refusal(error)
            if advice is not None:
                raise OdooAccessError(f"Odoo at {self._to.url}: {advice}") from error
            shown = str(error) or type(error).__name__
            raise OdooUnavailableError(f"Odoo at {self._to.url}: {shown}") from error
        try:
            return response.status_code, json.loads(content, parse_float=Decimal)
        except (ValueError, RecursionError):
            return response.status_code, ...

    async def _pace(self) -> None:
        """Wait until the next call may go out."""
        loop = asyncio.get_running_loop()
        at_s = max(self._next_s, loop.time())
        self._next_s = at_s + 1 / self._to.calls_per_s_max
        await asyncio.sleep(at_s - loop.time())

    def _no_answer(self, status: int) -> Exception:
        """The error for an answer that does not come from Odoo's models."""
        text = f"Odoo at {self._to.url} answers with HTTP status {status} and no result"
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            # Fewer rows may get through.
            return OdooRefusedError(text)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return OdooAccessError(f"{text}: something before Odoo does not let this client in")
        if 300 <= status < 500 and status not in PASSING_STATUSES:
            return OdooAccessError(f"{text}: check odoo.url, odoo.api and odoo.database")
        return OdooUnavailableError(text)

    def _fault(self, name: str, message: str) -> Exception:
        """The error for an exception in Odoo."""
        said = message.replace(self._to.key.reveal(), "(key)")[:MESSAGE_SHOWN_MAX]
        text = f"{name or 'Odoo'}: {said}"
        if name in DENIED or name == "odoo.exceptions.AccessError":
            return OdooAccessError(f"Odoo refuses this user: {text}")
        if name == "werkzeug.exceptions.NotFound" or message.startswith("404"):
            return OdooAccessError(f"{text}: check odoo.api, odoo.database and the models' names")
        if _NO_DATABASE.search(message):
            return OdooAccessError(f"{text}: check odoo.database")
        if name in PASSING or is_passing(message):
            return OdooUnavailableError(text)
        return OdooRefusedError(text)


def is_passing(message: str) -> bool:
    """Whether an error's text speaks of other transactions and not of the data."""
    return _PASSING_MESSAGE.search(message) is not None
