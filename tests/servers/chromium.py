"""A real Chromium for tests, headless, with an empty profile for each test."""

import importlib.util
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.servers.requirement import missing

if TYPE_CHECKING:
    from playwright.async_api import Page

CHROMIUM: Final = Path("/usr/bin/chromium")
ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP: Final = (1280, 800)
PHONE: Final = (390, 844)

OpenPage = Callable[[tuple[int, int]], Awaitable["Page"]]
"""A page in a browser of its own, so wide and so high; a phone touches."""


@pytest.fixture
async def open_page() -> AsyncIterator[OpenPage]:
    """Opens browsers, which end with the test."""
    if importlib.util.find_spec("playwright") is None:
        missing("Chromium", "what drives it is not installed: pip install playwright")
    if not CHROMIUM.exists():
        missing("Chromium", f"there is no {CHROMIUM}")
    from playwright.async_api import async_playwright

    async with AsyncExitStack() as stack:
        playwright = await stack.enter_async_context(async_playwright())

        async def open_one(size: tuple[int, int]) -> "Page":
            profile = stack.enter_context(tempfile.TemporaryDirectory(prefix="bss-chromium-"))
            context = await playwright.chromium.launch_persistent_context(
                profile,
                executable_path=CHROMIUM,
                args=list(ARGUMENTS),
                viewport={"width": size[0], "height": size[1]},
                is_mobile=size == PHONE,
                has_touch=size == PHONE,
            )
            stack.push_async_callback(context.close)
            return context.pages[0]

        yield open_one
