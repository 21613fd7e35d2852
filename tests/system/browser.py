"""A real browser without a window: Debian's Chromium, driven by Selenium."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

from tests import needs
from tests.peers.waiting import eventually

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    # Names of somebody else's that lead here, as after DNS rebinding.
    "--host-resolver-rules=MAP *.example 127.0.0.1",
)


class Browser:
    """A browser with one page."""

    def __init__(self, folder: Path) -> None:
        chromium, driver = needs.program("chromium"), needs.program("chromedriver")
        options = Options()
        options.binary_location = chromium
        for flag in FLAGS:
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={tempfile.mkdtemp(dir=folder)}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self._folder = Path(os.environ.get("PYRYCODE_RELAY_SCREENSHOTS", folder))
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.close = self.driver.quit

    def open(self, url: str) -> None:
        """Go to a page."""
        self.driver.get(url)

    def resize(self, width: int, height: int) -> None:
        """Give the page a size, which may be narrower than a window can be."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark`` pages."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def each_look(self) -> Iterator[tuple[str, int]]:
        """Show the page on a desk and on a phone, by day and by night; yield scheme and width.

        Nothing of it may need scrolling sideways.
        """
        inside = "return document.documentElement.scrollWidth <= innerWidth"
        for scheme in ("light", "dark"):
            self.prefer(scheme)
            for width in (1280, 390):
                self.resize(width, 1000)
                self.wait(f"{width} pixels show all", lambda: self.run(inside))
                yield scheme, width

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script in the page and return its result."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """Return the text of an element; nothing when there is none."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return str(self.run(script, selector))

    def wait(self, what: str, holds: Callable[..., Any]) -> Any:
        """Return the first true value."""
        return eventually(what, holds)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def complaints(self) -> list[Mapping[str, Any]]:
        """Return the browser's complaints since this was last asked.

        Left out are those about pages of its own, and about how often a test reads a canvas back.
        """
        log = self.driver.get_log("browser")
        own = (each for each in log if not each["message"].startswith("chrome://"))
        return [each for each in own if each["source"] != "rendering"]

    def shoot(self, name: str) -> None:
        """Keep a picture of the page, outside of the repository."""
        self.driver.save_screenshot(str(self._folder / f"{name}.png"))
