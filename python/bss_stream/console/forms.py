"""What comes with a request: fields of a query or a form, bounded, and as text only."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

FORM_BYTES_MAX: Final = 16_384
FIELDS_MAX: Final = 32
FIELD_LENGTH_MAX: Final = 512


async def form(request: Request) -> Mapping[str, str]:
    """The fields of a posted form. Raises HTTPException for what is none, or is too long."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "A form was expected.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES_MAX:
            raise HTTPException(413, "The form is too long.")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None
    return {name: value[:FIELD_LENGTH_MAX] for name, value in pairs}


def asked(request: Request, name: str) -> str:
    """A field of the query, empty without one."""
    return request.query_params.get(name, "").strip()[:FIELD_LENGTH_MAX]


def local_path(text: str) -> str:
    """Where to go on after a login: a path of this console, whatever was asked for."""
    is_local = text.startswith("/") and not text.startswith("//")
    return text if is_local and text.isprintable() and "\\" not in text else "/"
