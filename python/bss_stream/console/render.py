"""Pages out of templates: everything is escaped, numbers are exact, times are of one zone."""

import importlib.resources
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import jinja2
from starlette.responses import HTMLResponse

from bss_stream import __version__
from bss_stream.console import navigation
from bss_stream.errors import ConfigError
from bss_stream.queries.catalogue import Catalogue
from bss_stream.setup import exact

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def moment(at_ms: int) -> datetime | None:
    """An instant of epoch ms; None beyond the calendar, where only a faulty record can be."""
    try:
        return _EPOCH + timedelta(milliseconds=at_ms)
    except OverflowError:
        return None


def clock(at_ms: int) -> str:
    """`10:00:00.123`, UTC."""
    at = moment(at_ms)
    return str(at_ms) if at is None else at.strftime("%H:%M:%S.") + f"{at.microsecond // 1000:03}"


def day(at_ms: int) -> str:
    """`2026-11-24`, UTC."""
    at = moment(at_ms)
    return str(at_ms) if at is None else at.strftime("%Y-%m-%d")


def stamp(at_ms: int) -> str:
    """`2026-11-24 10:00:00`, UTC."""
    at = moment(at_ms)
    return str(at_ms) if at is None else at.strftime("%Y-%m-%d %H:%M:%S")


def grouped(number: int | float) -> str:
    """A number with its thousands apart by a narrow space."""
    return f"{number:,}".replace(",", "\u202f")


def words(name: str) -> str:
    """`quota_used` as people write it."""
    return name.replace("_", " ")


class Units:
    """Amounts as people read them; in smallest units where the set-up does not explain them."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def quota(self, units: int | str, service_id: str | None, unit: bool = True) -> str:
        """`12.34 kWh`, `3 swaps`, `∞`."""
        if isinstance(units, str):
            return "∞"
        try:
            service = self._catalogue.service(service_id or "")
        except ConfigError:
            return grouped(units)
        number = _plain(exact.text(units, service.unit_digits))
        if not unit:
            return number
        one = abs(units) == 1 and service.unit_digits == 0
        return f"{number} {service.usage_unit.removesuffix('s') if one else service.usage_unit}"

    def money(self, amount_minor: int, currency: str) -> str:
        """`1 500.50 KES`."""
        try:
            digits = self._catalogue.digits(currency)
        except ConfigError:
            return f"{grouped(amount_minor)} minor units of {currency}"
        return f"{grouped_text(exact.text(amount_minor, digits))} {currency}"

    def service(self, service_id: str | None) -> str:
        """A service's name, or its id."""
        try:
            return self._catalogue.service(service_id or "").name
        except ConfigError:
            return service_id or ""


def _plain(text: str) -> str:
    return grouped_text(text.rstrip("0").rstrip(".") if "." in text else text)


def grouped_text(text: str) -> str:
    """An exact decimal with its thousands apart."""
    return f"{Decimal(text):,f}".replace(",", "\u202f")


class Renderer:
    """Templates with what all pages need."""

    def __init__(self, units: Units) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("bss_stream.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "clock": clock,
            "day": day,
            "stamp": stamp,
            "grouped": grouped,
            "words": words,
        }
        self._environment.globals |= {
            "navigation": navigation.ENTRIES,
            "units": units,
            "version": __version__,
        }

    def page(
        self, template: str, scope: Any, /, *, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """One page; `scope` is that of the request."""
        state = scope["state"]
        text = self._environment.get_template(template).render(
            path=scope["path"],
            here=navigation.current(scope["path"]),
            session=state.get("session"),
            has_token=state.get("has_token", False),
            **values,
        )
        return HTMLResponse(text, status)


def static_directory() -> str:
    """Where style sheets and scripts lie."""
    return str(importlib.resources.files("bss_stream.console") / "static")
