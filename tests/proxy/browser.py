"""Debian's Chromium at the proxy's page, with an eye on all that a page must not do."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; it is in the extra `dev`")

from playwright.sync_api import Browser, Page  # noqa: E402
from tests.client.workload import FakeWorkload  # noqa: E402
from tests.proxy.local import PAGE  # noqa: E402

SECONDS = 60.0
"""For anything, on a machine that does other things as well."""

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.effectiveDirective}: ${event.blockedURI} ${event.sample}`);
});
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; skips the test where none is installed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium is installed; `make system-deps` installs it")
    with sync_api.sync_playwright() as playwright:
        # Chromium has no sandbox for root, who runs the tests in containers.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, token: str = PAGE, path: str = "/", **options: Any) -> Iterator[Page]:
    """The proxy's page as its user opens it, in a browser that knows nothing yet.

    Whatever the test does with it: the page asks nobody but the proxy, meets its own policy, and fails nowhere.
    """
    context = browser.new_context(**{"viewport": {"width": 1360, "height": 850}, "locale": "en", **options})
    context.set_default_timeout(1000 * SECONDS)
    context.add_init_script(WATCH)
    asked: list[str] = []
    failed: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(f"{url}{path}#token={token}" if token else url + path)
    page.wait_for_selector("body[data-begun]")
    try:
        yield page
        assert page.evaluate("window.violations") == []
        assert failed == []
        own = {urlsplit(url).netloc}
        assert {urlsplit(one).netloc for one in asked if not one.startswith("blob:")} == own
    finally:
        context.close()


def ask(page: Page, question: str) -> None:
    """Ask, and wait for whatever comes of it."""
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant:last-child .foot button")


def answers(page: Page) -> list[str]:
    return page.locator(".assistant .body").all_inner_texts()


def look(page: Page) -> None:
    """Have the page ask the proxy for its state now, as it does every few seconds."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def asked_by(act: Callable[[], object], page: Page, fake: FakeWorkload) -> None:
    """Do what has a question asked, and wait for what comes of it. What shows the end of it may show before, too."""
    before, deadline = len(fake.prompts), time.monotonic() + SECONDS
    act()
    while len(fake.prompts) == before:
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)
    until(page, "!document.querySelector('.writing') && document.querySelector('#stop').hidden")


def until(page: Page, condition: str, seconds: float = SECONDS) -> None:
    """Wait for what a JavaScript expression says. Playwright's own waiting needs `eval`, which the page has not."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)
