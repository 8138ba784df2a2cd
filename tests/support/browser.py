"""The system's Chromium, driven by Playwright: a page of a server as a user has it before him."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """One browser, without a window."""
    with sync_playwright() as playwright:
        # --no-sandbox: Chromium refuses to run as root with its own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, url: str, theme: str = "light", width: int = 1000) -> Iterator[Page]:
    """A page of its own, with nothing kept from others; what its console complains of fails the test."""
    complaints: list[str] = []
    with browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if theme == "dark" else "light"
    ) as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        yield page
    # A refused request is told on the page; that the browser notes it too is none of the page's doing.
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def drop(page: Page, *files: Path) -> None:
    """Let files fall on the page, as from a file manager."""
    contents = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in files]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            const types = { png: "image/png", mp4: "video/mp4", txt: "text/plain" };
            for (const [name, data] of files) {
                const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: types[name.split(".").pop()] ?? "" }));
            }
            return transfer;
        }""",
        contents,
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("body", event, {"dataTransfer": transfer})
