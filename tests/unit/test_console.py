"""The console over a real log and database: what it shows, to whom, and what it refuses."""

import re
import sqlite3
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Final

import pytest

from bss_stream.clock import epoch_ms
from bss_stream.config import Config
from bss_stream.console.access import COOKIE, FAILURES_MAX
from bss_stream.console.app import HEADERS
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.testing import Playground
from tests.console import FORM, TOKEN, Browser, configured, console, furnish
from tests.logs import chunk
from tests.rider_story import hand_over, paid_plan, send
from tests.unit.histories import rfc3339

HOSTILE: Final = "<script>alert('x')</script>"
PAGES: Final = (
    "/",
    "/stations",
    "/operator",
    "/fleets",
    "/plans",
    "/plans/p-1",
    "/ledger",
    "/dead-letters",
)


@pytest.fixture(scope="module")
def play() -> Playground:
    """A paid plan with a few swaps until a moment ago, and letters that could not be processed."""
    play = Playground()
    play.now_ms = epoch_ms() - 5 * 43_200_000
    paid_plan(play)
    hand_over(play, None, "bat-1", 1.5)
    hand_over(play, "bat-1", "bat-2", 2.25)
    play.now_ms = epoch_ms() - 60_000
    stamp = rfc3339(play.now_ms)
    topic = "emit/abs/bss/payment/p-9/service_payment"
    play.mqtt(
        topic,
        b'{"timestamp":"%s","plan_id":"p-9","correlation_id":"pay-9","data":{}}' % stamp.encode(),
    )
    play.mqtt(topic, f"{HOSTILE} is no JSON".encode())
    play.mqtt(topic, b"\xff\x00\x1b[31m")
    return play


@pytest.fixture
async def config(tmp_path: Path, play: Playground) -> Config:
    config = configured(tmp_path / "data")
    await furnish(config, play)
    return config


@pytest.fixture
async def browser(config: Config) -> AsyncIterator[Browser]:
    """Somebody who has logged in, and a console that has read all states."""
    async with console(config) as (browser, _):
        assert (await browser.log_in()).status_code == 303
        await browser.until("/plans/p-1", "Paid until")
        yield browser


async def letter_id(browser: Browser, reason: str) -> str:
    page = await browser.page(f"/dead-letters?reason={reason}")
    found = re.search(r'href="/dead-letters/(\d+-\d+)"', page)
    assert found is not None, page
    return found[1]


def csrf_of(page: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found is not None, page
    return found[1]


# Who may see what.


async def test_a_stranger_sees_the_login_alone(config: Config) -> None:
    async with console(config) as (browser, _):
        for path in PAGES:
            answer = await browser.get(path, headers={"Accept": "text/html"})
            assert (answer.status_code, answer.headers["location"][:12]) == (303, "/login?next=")
        assert (await browser.get("/live/events")).status_code == 401
        assert (await browser.form("/dead-letters/0-0/replay")).status_code == 401
        assert (await browser.get("/healthz")).json() == {"status": "ok"}
        assert (await browser.get("/static/console.css")).status_code == 200
        assert "Token" in await browser.page("/login")


async def test_a_login_and_a_logout(config: Config) -> None:
    async with console(config) as (browser, _):
        answer = await browser.form("/login", token=TOKEN, next="/ledger?plan=p-1")
        assert answer.headers["location"] == "/ledger?plan=p-1"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert TOKEN not in cookie
        csrf, kept = csrf_of(await browser.page("/")), browser.cookies[COOKIE]
        assert (await browser.form("/logout", csrf="0" * 64)).status_code == 403
        assert (await browser.form("/logout", csrf=csrf)).status_code == 303
        browser.cookies.set(COOKIE, kept)
        assert (await browser.get("/")).status_code == 401


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "/\\evil.example", "x"])
async def test_a_login_leads_nowhere_else(config: Config, to: str) -> None:
    async with console(config) as (browser, _):
        answer = await browser.form("/login", token=TOKEN, next=to)
        assert answer.headers["location"] == "/"


async def test_guesses_are_limited(config: Config) -> None:
    async with console(config) as (browser, _):
        for _ in range(FAILURES_MAX):
            assert (await browser.log_in("wrong")).status_code == 401
        refused = await browser.log_in()
        assert (refused.status_code, COOKIE in browser.cookies) == (429, False)
        assert 0 < int(refused.headers["retry-after"]) <= 60


async def test_without_a_token_this_machine_may_read_and_nobody_write(
    config: Config, tmp_path: Path
) -> None:
    async with console(configured(tmp_path / "data", token=None)) as (browser, _):
        for path in PAGES:
            assert "read only" in await browser.page(path)
        letter = await letter_id(browser, "unknown_plan")
        page = await browser.page(f"/dead-letters/{letter}")
        assert "token_file" in page
        assert "<button>Replay" not in page
        replay = f"/dead-letters/{letter}/replay"
        assert (await browser.form(replay, confirm="yes")).status_code == 403
        for host in ("evil.example", "evil.example:8480", "127.0.0.1.evil.example"):
            answer = await browser.get("/", headers={"Host": host})
            assert answer.status_code == 403
        for host in ("localhost:8480", "[::1]:8480", "127.0.0.1"):
            assert (await browser.get("/", headers={"Host": host})).status_code == 200


async def test_every_answer_has_the_headers(browser: Browser) -> None:
    paths = (*PAGES, "/login", "/healthz", "/static/live.js", "/nowhere", "/ledger?plan=%3C")
    for path in paths:
        answer = await browser.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, path
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in PAGES:
        page = await browser.page(path)
        assert not re.search(
            r"<script(?![^>]* src=)|\son[a-z]+=|\sstyle=|https?://(?!www\.w3)", page
        )


# What they show.


async def test_a_plan(browser: Browser) -> None:
    page = unescape(await browser.page("/plans/p-1"))
    assert re.findall(r'class="state current">.*?<text[^>]*>([A-Z_]+)<', page) == [
        "CURRENT",
        "BATTERY_ISSUED",
    ]
    assert "bat-2" in page
    assert ">active</span>" in page
    assert re.search(r'data-label="used">3\.75<', page)
    assert 'class="badge ready">holds' in page
    assert "agree with the live state" in page
    assert "Swaps today" in page
    for what in ("payment and service", "quota used", "contract signed", "odoo sync"):
        assert f">{what}<" in page
    assert ">signal<" in page
    assert ">echo<" in page


async def test_a_broken_chain_is_told(config: Config, browser: Browser) -> None:
    file = config.ledger_url().reveal().removeprefix("sqlite:")
    with sqlite3.connect(file) as database:
        database.execute(
            "UPDATE ledger_entries SET entry = replace(entry, '\"units\":1,', '\"units\":2,') "
            "WHERE kind = 'quota_used'"
        )
    database.close()
    page = await browser.page("/plans/p-1")
    assert 'class="badge empty">broken' in page
    assert "<td>hash</td>" in page


async def test_plans_that_are_none(browser: Browser) -> None:
    assert "No plan nobody" in await browser.page("/plans/nobody", 404)
    await browser.page("/plans/%3Cscript%3E", 404)
    page = await browser.page(f"/plans?plan_id={HOSTILE}", 400)
    assert HOSTILE not in page
    assert "This is no plan" in page
    found = await browser.get("/plans?plan_id=p-1")
    assert (found.status_code, found.headers["location"]) == (303, "/plans/p-1")


async def test_stations(browser: Browser) -> None:
    page = unescape(await browser.page("/stations"))
    assert page.count("<article") == page.count('class="spot ')
    assert "Central Business District" in page
    assert 'id="station-nbi-001"' in page
    other = await browser.page("/stations?market=Lom%C3%A9%2C+Togo")
    assert 'id="station-lome-001"' in other
    assert "station-nbi" not in other


async def test_the_reports(browser: Browser) -> None:
    operator = unescape(await browser.page("/operator"))
    assert operator.count("<tbody>") == operator.count('class="group"') > 40
    assert "station-lome-001" in await browser.page("/operator?market=Lom%C3%A9%2C+Togo")
    # The rider's battery went out at station-nbi-001, and the next one, days ago.
    assert re.search(r"station-nbi-001.*?out", operator, re.DOTALL)
    fleets = unescape(await browser.page("/fleets?days=30"))
    assert "<code>bat-2</code>" in fleets
    assert "1\u202f500.50 KES" in fleets
    assert "Central Business District" in fleets
    assert "No station has issued" in await browser.page("/fleets?market=Lom%C3%A9%2C+Togo")


async def test_the_ledger_page_by_page(
    browser: Browser, play: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bss_stream.console.pages.ledger.PAGE_ROWS", 4)
    wanted = [entry["entry_id"] for entry in play.entries() if entry["plan_id"] == "p-1"]
    for query in ("?plan=p-1", "?from=2026-01-01T00:00"):
        seen: list[str] = []
        path: str | None = f"/ledger{query}"
        while path is not None:
            page = unescape(await browser.page(path))
            seen += re.findall(r'<details id="d-([^"]+)"', page)
            older = re.search(r'rel="next" href="([^"]+)"', page)
            path = older[1] if older else None
        assert len(seen) == len(set(seen))
        assert set(seen) == set(wanted)
    assert "quota used" in await browser.page("/ledger?kind=quota_used&from=2026-01-01T00:00")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("plan=%3Cb%3E", "1 to 64 characters"),
        ("kind=nonsense", ""),
        ("cause=plan-1-2", "PARTITION/OFFSET"),
        ("from=yesterday", "in UTC"),
    ],
)
async def test_what_cannot_be_searched_for(browser: Browser, query: str, said: str) -> None:
    page = await browser.page(f"/ledger?{query}", 400)
    assert "Nothing was searched" in page
    assert said in page


async def test_hostile_bytes_are_shown_and_do_nothing(browser: Browser) -> None:
    page = await browser.page("/dead-letters")
    assert "malformed json" in page
    found = re.findall(r'href="/dead-letters/(\d+-\d+)"', page)
    pages = [await browser.page(f"/dead-letters/{one}") for one in found]
    assert any("&lt;script&gt;alert(&#39;x&#39;)" in one for one in pages)
    assert any("ff 00 1b 5b" in one for one in pages)
    assert not any(HOSTILE in one or "\x1b" in one for one in (page, *pages))
    for path in ("/dead-letters/9-9", "/dead-letters/0-99", "/dead-letters/x"):
        await browser.page(path, 404)


async def test_filters_of_letters(browser: Browser) -> None:
    page = await browser.page("/dead-letters?reason=unknown_plan")
    assert page.count('href="/dead-letters/') == 1
    assert "No dead letter is like that" in await browser.page("/dead-letters?entity=nobody")


# What they change.


async def test_a_replay_needs_its_form_and_a_word(config: Config, browser: Browser) -> None:
    letter = await letter_id(browser, "unknown_plan")
    path = f"/dead-letters/{letter}"
    csrf = csrf_of(await browser.page(path))
    assert (await browser.form(f"{path}/replay", confirm="yes")).status_code == 403
    assert (await browser.form(f"{path}/replay", confirm="yes", csrf="0" * 64)).status_code == 403
    assert (await browser.get(f"{path}/replay")).status_code == 405
    unconfirmed = await browser.form(f"{path}/replay", csrf=csrf)
    assert unconfirmed.headers["location"] == f"{path}?fault=unconfirmed"
    assert 'class="badge ready">replayed' not in await browser.page(path)
    done = await browser.form(
        f"{path}/replay", csrf=csrf, confirm="yes", note="<b>the plan\n is there now"
    )
    assert done.headers["location"] == path
    page = await browser.page(path)
    assert page.count('class="badge ready">replayed') == 1
    assert "console: &lt;b&gt;the plan is there now" in page
    again = await browser.form(f"{path}/replay", csrf=csrf, confirm="yes")
    assert again.headers["location"] == f"{path}?fault=left"
    assert (await browser.page(path)).count('class="badge ready">replayed') == 1


async def test_forms_that_are_none(browser: Browser) -> None:
    path = "/dead-letters/0-0/replay"
    assert (await browser.post(path, json={"confirm": "yes"})).status_code == 415
    for body in (b"a=%s" % (b"x" * 20_000), b"&".join([b"a=1"] * 100), b"\xff\xfe"):
        answer = await browser.post(path, content=body, headers=FORM)
        assert answer.status_code in (400, 403, 413)


# When something is away.


async def test_what_is_away_is_told_and_comes_back(tmp_path: Path) -> None:
    config = configured(tmp_path / "data")
    async with console(config) as (browser, _):
        await browser.log_in()
        page = await browser.page("/")
        assert "The ledger database is away" in page
        for path in ("/stations", "/operator", "/fleets", "/plans", "/plans/p-1", "/ledger"):
            page = await browser.page(path, 503)
            assert "The ledger database is away" in page
            assert "data-refresh" in page
        assert "The log is away" in await browser.page("/dead-letters", 503)
        made = Playground()
        made.now_ms = epoch_ms() - 3 * 43_200_000
        paid_plan(made)
        await furnish(config, made)
        assert "p-1" in await browser.page("/ledger?plan=p-1")
        assert "There is no dead letter" in await browser.page("/dead-letters")
        await browser.until("/plans/p-1", "CURRENT")


async def test_the_live_page_follows_the_log(config: Config, play: Playground) -> None:
    async with console(config) as (browser, live):
        await browser.log_in()
        await browser.until("/", 'id="log-fault" role="status" hidden')
        more = Playground()
        more.now_ms = epoch_ms() - 43_200_000
        paid_plan(more, "p-2")
        send(more, "emit/uxi/attendant/plan/p-2/identify_customer", "p-2", action="QR")
        log = EmbeddedLog(config.log_directory, partitions=more.partitions)
        await log.open()
        appender = await log.appender()
        for made in more.produced:
            await appender.append([chunk(made.topic, made.partition, (made.key, made.value))])
        await appender.close()
        await log.close()
        entries = len(list(more.entries()))
        await browser.until("/", f"<span data-total>{entries}</span> seen")
        live.stop()
        events = await browser.get("/live/events")
        assert events.headers["content-type"].startswith("text/event-stream")
        assert events.text.startswith("retry: ")


async def test_the_token_is_nowhere_to_be_seen(
    config: Config, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    for path in PAGES:
        assert TOKEN not in await browser.page(path)
    await browser.log_in("a wrong guess of somebody")
    assert TOKEN not in caplog.text
    assert "a wrong guess" not in caplog.text
    assert TOKEN not in repr(config)
