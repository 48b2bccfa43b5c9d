"""A console over a log and a ledger database with what a playground has made."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import httpx

from bss_stream.config import Config, Console, EmbeddedLog, Log
from bss_stream.console.app import make_app
from bss_stream.console.pages.live import Live
from bss_stream.console.serve import make_context
from bss_stream.roles import open_log
from bss_stream.testing import Playground
from bss_stream.validation import Secret
from tests.logs import chunk
from tests.read_model import Copied

TOKEN: Final = "a-token-that-nobody-guesses"
BASE: Final = "http://127.0.0.1:8480"
TRIES: Final = 600
PAUSE_S: Final = 0.05
FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}


def configured(folder: Path, token: str | None = TOKEN) -> Config:
    """An embedded platform's configuration, its data in a folder."""
    return Config(
        data_dir=str(folder),
        log=Log(embedded=EmbeddedLog(durability="process")),
        console=Console(token=None if token is None else Secret(token)),
    )


async def furnish(config: Config, play: Playground) -> None:
    """Write what a playground has taken and made, as the platform would have."""
    log = await open_log(config)
    appender = await log.appender()
    for one in play.consumed:
        await appender.append([chunk(one.topic, one.partition, (one.key, one.value))])
    for made in play.produced:
        if made.topic.startswith(("bss.state.", "bss.ledger.", "bss.outbox", "bss.dead-letter")):
            await appender.append([chunk(made.topic, made.partition, (made.key, made.value))])
    await appender.close()
    await log.close()
    with Copied(play, config.ledger_url().reveal()) as copied:
        copied.take()


class Browser(httpx.AsyncClient):
    """A client that keeps cookies and follows nothing by itself."""

    async def page(self, path: str, status: int = 200) -> str:
        """A page's text."""
        answer = await self.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == status, answer.text
        return answer.text

    async def until(self, path: str, text: str) -> str:
        """A page's text, once it shows what it has to; fails where that never comes."""
        for _ in range(TRIES):
            page = await self.page(path)
            if text in page:
                return page
            await asyncio.sleep(PAUSE_S)
        raise AssertionError(f"{path} never showed {text!r}: {page}")

    async def form(self, path: str, **fields: str) -> httpx.Response:
        """Post a form."""
        return await self.post(path, content=urlencode(fields), headers=FORM)

    async def log_in(self, token: str = TOKEN) -> httpx.Response:
        """Post the login's form."""
        return await self.form("/login", token=token, next="/")


@contextlib.asynccontextmanager
async def console(config: Config) -> AsyncIterator[tuple[Browser, Live]]:
    """A console that runs, and a browser before its login."""
    app, live = make_app(make_context(config), secure=False)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with Browser(transport=transport, base_url=BASE) as browser:
            yield browser, live
