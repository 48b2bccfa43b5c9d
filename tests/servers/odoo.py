"""An HTTP server that answers as Odoo's external API does: JSON-RPC and JSON-2, `load`, its errors.

Odoo itself is in no package registry, so this stands in for it: the subset of the ORM that an
integration calls, with the answers that Odoo's documentation and sources give. A call is one
transaction: what fails leaves nothing behind. Faults are put in line by `faults` and met by the
next calls; `kill` and `start` are a server that dies and comes back with what it had committed.
"""

import asyncio
import contextlib
import json
import re
import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final

from tests.servers.ports import free_port

DATABASE, LOGIN, KEY, USER = "billing", "bss@example.com", "key-in-the-clear-6578616d", 7
INTEGER_MAX: Final = 2**31 - 1
ERRORS_SHOWN_MAX: Final = 10
"""After so many, `load` gives up on the rows behind."""

Row = dict[str, Any]
Constraint = Callable[[Row], str | None]
"""What is wrong with a record, None if nothing."""


class OdooException(Exception):  # noqa: N818
    """An exception in Odoo: the name of its class, what it says, and its status over JSON-2."""

    def __init__(self, name: str, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.name = name
        self.message = message
        self.status = status


def user_error(message: str) -> OdooException:
    return OdooException("odoo.exceptions.UserError", message, 422)


def access_denied() -> OdooException:
    return OdooException("odoo.exceptions.AccessDenied", "Access Denied", 403)


@dataclass
class Field:
    """One field of a model."""

    type: str
    required: bool = False
    selection: tuple[str, ...] = ()


@dataclass
class Model:
    """One model and its records by id."""

    name: str
    fields: dict[str, Field]
    rights: frozenset[str] = frozenset(("read", "write", "create"))
    constraint: Constraint | None = None
    rows: dict[int, Row] = field(default_factory=dict)


class Hang(Exception):  # noqa: N818
    """The connection ends here."""


@dataclass
class Fault:
    """What becomes of one call."""

    kind: str
    """`status`, `html`, `error`, `too_large` (for more rows than that), `drop_before`,
    `drop_after`, `hang`, `die_before`, `die_after`."""
    value: Any = None
    method: str = "load"
    """Other calls pass it by."""


BASE_FIELDS: Final = {
    "id": Field("integer"),
    "create_date": Field("datetime"),
    "write_date": Field("datetime"),
}


class OdooServer:
    """One database behind an HTTP port of the loopback."""

    def __init__(self, *, version: int = 17, tls: ssl.SSLContext | None = None) -> None:
        self.port = free_port()
        self.version = version
        self.tls = tls
        self.models: dict[str, Model] = {}
        self.external_ids: dict[str, tuple[str, int]] = {}
        self.key = KEY
        self.faults: deque[Fault] = deque()
        self.calls: Counter[str] = Counter()
        """By method, those that failed as well."""
        self.rows_loaded = 0
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.released = asyncio.Event()
        """Set, what hangs goes on."""
        self._next_id = 0
        self._undo: list[Callable[[], object]] = []
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    def model(self, name: str, /, **fields: Field) -> Model:
        """Make a model."""
        made = self.models[name] = Model(name, {**BASE_FIELDS, **fields})
        return made

    def add(self, model: str, **values: Any) -> int:
        """Make a record, as somebody in Odoo does."""
        row = self._created(self.models[model], values)
        self._undo.clear()
        return row

    def rows(self, model: str) -> list[Row]:
        """The records of a model."""
        return list(self.models[model].rows.values())

    # The server.

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)

    async def kill(self) -> None:
        """Be gone at once: connections break, and what is not committed is lost."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._connections):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def __aenter__(self) -> "OdooServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.released.set()
        await self.kill()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request, *lines = head.decode("latin-1").split("\r\n")
                headers = {
                    name.strip().lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines if line)
                }
                method, path, _ = request.split(" ")
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, kind, answer = await self._answer(method, path, headers, body)
                writer.write(
                    f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
                    f"Content-Type: {kind}\r\nContent-Length: {len(answer)}\r\n\r\n".encode()
                    + answer
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, Hang):
            pass
        finally:
            self._connections.discard(writer)
            writer.transport.abort()

    async def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        if method != "POST":
            return 405, "text/html", b"<h1>Method Not Allowed</h1>"
        if path == "/jsonrpc":
            return await self._json_rpc(body)
        found = re.fullmatch(r"/json/2/([a-z0-9_.]+)/([a-z_]+)", path)
        if found is not None and self.version >= 19:
            return await self._json_2(found[1], found[2], headers, body)
        return 404, "text/html", b"<!doctype html><title>404 Not Found</title>"

    async def _json_rpc(self, body: bytes) -> tuple[int, str, bytes]:
        request = json.loads(body)
        params = request["params"]
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            result = await self._service(params["service"], params["method"], params["args"])
        except OdooException as error:
            data = self._serialized(error)
            answer["error"] = {"code": 200, "message": "Odoo Server Error", "data": data}
        except _Answered as answered:
            return answered.status, "text/html", answered.body
        else:
            # A method that returns None has no result in its answer.
            if result is not None:
                answer["result"] = result
        return 200, "application/json; charset=utf-8", json.dumps(answer).encode()

    async def _json_2(
        self, model: str, method: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        kind = "application/json; charset=utf-8"
        try:
            if headers.get("authorization") != f"bearer {self.key}":
                raise OdooException("werkzeug.exceptions.Unauthorized", "Invalid apikey", 401)
            if headers.get("x-odoo-database") != DATABASE:
                return 404, "text/html", b"<!doctype html><title>404 Not Found</title>"
            if model not in self.models:
                message = f"the model {model!r} does not exist"
                raise OdooException("werkzeug.exceptions.NotFound", message, 404)
            named = json.loads(body)
            ids, context = named.pop("ids", None), named.pop("context", {})
            positional = [] if ids is None else [ids]
            result = await self._call(model, method, positional, {**named, "context": context})
        except OdooException as error:
            return error.status, kind, json.dumps(self._serialized(error)).encode()
        except _Answered as answered:
            return answered.status, "text/html", answered.body
        return 200, kind, json.dumps(result).encode()

    def _serialized(self, error: OdooException) -> dict[str, Any]:
        return {
            "name": error.name,
            "message": error.message,
            "arguments": [error.message],
            "context": {},
            "debug": f"Traceback (most recent call last):\n{error.name}: {error.message}\n",
        }

    async def _service(self, service: str, method: str, args: Sequence[Any]) -> Any:
        if (service, method) == ("common", "version"):
            info = [self.version, 0, 0, "final", 0, ""]
            return {"server_version": f"{self.version}.0", "server_version_info": info}
        if (service, method) in (("common", "authenticate"), ("common", "login")):
            return USER if list(args[:3]) == [DATABASE, LOGIN, self.key] else False
        if (service, method) != ("object", "execute_kw"):
            raise OdooException("builtins.NameError", f"Method not available {method}")
        database, user, key, model, name, positional, *named = args
        if (database, user, key) != (DATABASE, USER, self.key):
            raise access_denied()
        if model not in self.models:
            raise user_error(f"Object {model} doesn't exist")
        return await self._call(model, name, positional, named[0] if named else {})

    # A call, which is a transaction.

    async def _call(
        self, model: str, method: str, positional: Sequence[Any], named: Mapping[str, Any]
    ) -> Any:
        self.calls[method] += 1
        fault = self._next_fault(method)
        if fault is not None:
            await self._before(fault, len(named.get("data", ())))
        public = getattr(self, f"_do_{method}", None)
        if public is None:
            message = f"The method '{model}.{method}' does not exist"
            raise OdooException("builtins.AttributeError", message)
        arguments = {name: value for name, value in named.items() if name != "context"}
        try:
            result = public(self.models[model], *positional, **arguments)
        except BaseException:
            self._rollback()
            raise
        self._undo.clear()
        if fault is not None and fault.kind == "drop_after":
            raise Hang
        if fault is not None and fault.kind == "die_after":
            await self.kill()
            raise Hang
        return result

    def _next_fault(self, method: str) -> Fault | None:
        if self.faults and self.faults[0].method in (method, "*"):
            return self.faults.popleft()
        return None

    async def _before(self, fault: Fault, rows: int) -> None:
        match fault.kind:
            case "status":
                raise _Answered(fault.value, b"<html><h1>Bad Gateway</h1></html>")
            case "html":
                raise _Answered(200, b"<html>maintenance</html>")
            case "error":
                raise OdooException(*fault.value)
            case "too_large" if rows > fault.value:
                self.faults.appendleft(fault)
                raise _Answered(413, b"<h1>Request Entity Too Large</h1>")
            case "drop_before":
                raise Hang
            case "die_before":
                await self.kill()
                raise Hang
            case "hang":
                await self.released.wait()
                raise Hang

    def _rollback(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    # The ORM.

    def _do_fields_get(
        self, model: Model, allfields: Sequence[str] = (), attributes: Sequence[str] = ()
    ) -> Any:
        self._check_right(model, "read")
        return {name: {"type": one.type} for name, one in model.fields.items()}

    def _do_check_access_rights(
        self, model: Model, operation: str, raise_exception: bool = True
    ) -> bool:
        if self.version >= 19:
            raise OdooException("builtins.AttributeError", "check_access_rights")
        return operation in model.rights

    def _do_has_access(self, model: Model, ids: Sequence[int], operation: str) -> bool:
        if self.version < 18:
            raise OdooException("builtins.AttributeError", "has_access")
        return operation in model.rights

    def _do_create(self, model: Model, vals_list: Any) -> Any:
        self._check_right(model, "create")
        many = isinstance(vals_list, list)
        made = [self._created(model, values) for values in (vals_list if many else [vals_list])]
        return made if many else made[0]

    def _do_write(self, model: Model, ids: Sequence[int], vals: Mapping[str, Any]) -> bool:
        self._check_right(model, "write")
        for row_id in ids:
            self._written(model, row_id, vals)
        return True

    def _do_search_read(
        self,
        model: Model,
        domain: Sequence[Sequence[Any]] = (),
        fields: Sequence[str] = (),
        offset: int = 0,
        limit: int | None = None,
        order: str = "id",
    ) -> list[Row]:
        self._check_right(model, "read")
        for name in (*fields, *(term[0] for term in domain)):
            if name not in model.fields:
                raise OdooException(
                    "builtins.ValueError", f"Invalid field {name!r} on {model.name!r}"
                )
        found = [row for row in model.rows.values() if all(_matches(row, *term) for term in domain)]
        name, _, direction = order.partition(" ")
        found.sort(key=lambda row: row[name], reverse=direction == "desc")
        page = found[offset:][:limit]
        wanted = ("id", *(fields or model.fields))
        return [{name: row.get(name, False) for name in wanted} for row in page]

    def _do_load(
        self, model: Model, fields: Sequence[str], data: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        """Rows of text with external ids (`id`) or database ids (`.id`): all of them or none."""
        for name in fields:
            if name not in ("id", ".id") and name not in model.fields:
                raise OdooException("builtins.ValueError", f"Invalid field name {name!r}")
        messages: list[dict[str, Any]] = []
        ids: list[int] = []
        for at, cells in enumerate(data):
            info = {"rows": {"from": at, "to": at}, "record": at}
            try:
                ids.append(self._loaded(model, dict(zip(fields, cells, strict=True))))
            except OdooException as error:
                messages.append({**info, "type": "error", "message": error.message})
            if len(messages) >= ERRORS_SHOWN_MAX:
                messages.append({"type": "warning", "message": "Found more than 10 errors"})
                break
        if messages:
            if len(data) > 1:
                # Odoo also repeats what creating all at once had said, in the name of the first.
                first = {"rows": {"from": 0, "to": 0}, "record": 0}
                messages.insert(0, {**first, **messages[0], **first})
            self._rollback()
            return {"ids": False, "messages": messages, "nextrow": 0}
        self.rows_loaded += len(ids)
        return {"ids": ids, "messages": [], "nextrow": 0}

    def _loaded(self, model: Model, cells: dict[str, str]) -> int:
        external, internal = cells.pop("id", None), cells.pop(".id", None)
        values = {name: _converted(model.fields[name], cell) for name, cell in cells.items()}
        if internal is not None:
            self._check_right(model, "write")
            self._written(model, int(internal), values)
            return int(internal)
        assert external is not None
        assert external.count(".") >= 1
        known = self.external_ids.get(external)
        if known is not None:
            self._check_right(model, "write")
            assert known[0] == model.name
            self._written(model, known[1], values)
            return known[1]
        self._check_right(model, "create")
        made = self._created(model, values)
        self.external_ids[external] = (model.name, made)
        self._undo.append(lambda: self.external_ids.pop(external))
        return made

    def _created(self, model: Model, values: Mapping[str, Any]) -> int:
        self._next_id += 1
        row_id = self._next_id
        stamp = self.now().strftime("%Y-%m-%d %H:%M:%S")
        empty = dict.fromkeys(model.fields, False)
        row = {**empty, "create_date": stamp, "write_date": stamp, **values, "id": row_id}
        self._check(model, row)
        model.rows[row_id] = row
        self._undo.append(lambda: model.rows.pop(row_id))
        return row_id

    def _written(self, model: Model, row_id: int, values: Mapping[str, Any]) -> None:
        before = model.rows.get(row_id)
        if before is None:
            message = "Record does not exist or has been deleted."
            raise OdooException("odoo.exceptions.MissingError", message, 404)
        row = {**before, "write_date": self.now().strftime("%Y-%m-%d %H:%M:%S"), **values}
        self._check(model, row)
        model.rows[row_id] = row
        self._undo.append(lambda: model.rows.update({row_id: before}))

    def _check(self, model: Model, row: Row) -> None:
        for name, one in model.fields.items():
            if one.required and row[name] is False:
                raise user_error(f"Missing required value for the field {name!r}")
        fault = None if model.constraint is None else model.constraint(row)
        if fault is not None:
            raise OdooException("odoo.exceptions.ValidationError", fault, 422)

    def _check_right(self, model: Model, operation: str) -> None:
        if operation not in model.rights:
            message = f"You are not allowed to {operation} '{model.name}' records."
            raise OdooException("odoo.exceptions.AccessError", message, 403)


class _Answered(Exception):  # noqa: N818
    """An answer that does not come from Odoo's models."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


def _converted(one: Field, cell: str) -> Any:
    """A cell of `load` as the field's value."""
    assert isinstance(cell, str)
    if not cell:
        return False
    try:
        match one.type:
            case "integer":
                number = int(cell)
                if abs(number) > INTEGER_MAX:
                    raise user_error("integer out of range")
                return number
            case "float" | "monetary":
                return float(cell)
            case "date":
                return date.fromisoformat(cell).isoformat()
            case "datetime":
                datetime.strptime(cell, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            case "selection" if cell not in one.selection:
                raise user_error(f"Value '{cell}' not found in selection field")
    except ValueError:
        raise user_error(f"'{cell}' does not seem to be a {one.type}") from None
    return cell


def _matches(row: Row, name: str, operator: str, value: Any) -> bool:
    found = row[name]
    # A related record is its id and name; a domain speaks of the name.
    found = found[1] if isinstance(found, list) else found
    match operator:
        case "=":
            return bool(found == value)
        case "!=":
            return bool(found != value)
        case "in":
            return found in value
        case ">":
            return bool(found > value)
        case ">=":
            return bool(found >= value)
        case "<=":
            return bool(found <= value)
        case "=like":
            pattern = re.escape(value).replace("%", ".*").replace("_", ".")
            return isinstance(found, str) and re.fullmatch(pattern, found) is not None
    raise OdooException("builtins.ValueError", f"Invalid operator {operator!r}")


STATUSES: Final = ("DRAFT", "ACTIVE", "SUSPENDED", "COMPLETE")


def billing_models(server: OdooServer) -> None:
    """The models of docs/odoo.md, as an administrator makes them."""
    text, moment = Field("char"), Field("datetime")
    server.model(
        "sale.order",
        name=text,
        client_order_ref=text,
        x_bss_status=Field("selection", selection=STATUSES),
        x_bss_payment_state=text,
        x_bss_service_state=text,
        x_bss_period_end=moment,
    )
    common = {
        "x_name": Field("char", required=True),
        "x_plan_id": Field("char", required=True),
        "x_seq": Field("integer", required=True),
        "x_kind": Field("char", required=True),
        "x_service_id": text,
        "x_day": Field("date", required=True),
        "x_event_at": Field("datetime", required=True),
    }
    server.model(
        "x_bss_payment",
        **common,
        x_payment_id=text,
        x_money=Field("selection", selection=("received", "returned", "granted", "charged")),
        x_amount=Field("float"),
        x_amount_minor=text,
        x_currency=text,
    )
    number = Field("float")
    server.model(
        "x_bss_usage", **common, x_units=number, x_used=number, x_granted=number, x_unit=text
    )
    server.model(
        "account.move",
        name=text,
        payment_state=text,
        amount_total=Field("monetary"),
        currency_id=Field("many2one"),
        x_bss_plan_id=text,
        x_bss_subscription_id=text,
        x_bss_subscription_state=text,
    )


@contextlib.contextmanager
def refusing(model: Model, constraint: Constraint) -> Iterator[None]:
    """Have a model refuse what a constraint finds fault with."""
    model.constraint = constraint
    try:
        yield
    finally:
        model.constraint = None
