"""A real headless Chromium for the report's tests, and what it says of a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of this machine; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine: no page was opened in a browser")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Reader:
    """Someone who opens pages, each once, and hears all that they say and ask for: ``said`` holds what came on their
    consoles and in dialogs, ``fetched`` the addresses that they asked for besides their own."""

    browser: Browser
    said: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    _tabs: dict[Path, Page] = field(default_factory=dict)

    def opens(self, page: Path, address: str = "") -> Page:
        """The page, alive, with nothing chosen yet but what its address says, as if it were opened anew."""
        fresh = page not in self._tabs
        if fresh:
            self._tabs[page] = self._new(page, address)
        tab = self._tabs[page]
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.emulate_media(color_scheme="light", reduced_motion="reduce")
        if fresh:
            return tab
        tab.evaluate("(address) => { scrollTo(0, 0); location.hash = address; }", address or "#point=")
        if tab.locator('[data-whole="true"]').count():
            tab.locator("#window").click()
        tab.locator("#all-trials").set_checked(False)
        return tab

    def opens_anew(self, page: Path, address: str = "") -> Page:
        """The same in a tab that nobody used before."""
        self._tabs.pop(page, None)
        return self.opens(page, address)

    def _hear(self, dialog: Dialog) -> None:
        self.said.append(dialog.message)
        dialog.dismiss()

    def _asks(self, url: str, own: str) -> None:
        if not url.startswith((own, "blob:")):
            self.fetched.append(url)

    def _new(self, page: Path, address: str) -> Page:
        own = page.resolve().as_uri()
        context = self.browser.new_context(accept_downloads=True)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab = context.new_page()
        tab.set_default_timeout(60_000)  # of a machine that has other things to do
        tab.on("console", lambda message: self.said.append(message.text))
        tab.on("pageerror", lambda error: self.said.append(str(error)))
        tab.on("dialog", self._hear)
        tab.on("request", lambda request: self._asks(request.url, own))
        tab.goto(own + address)
        tab.wait_for_selector('html[data-ready="true"]')
        return tab
