"""Take a picture of a page of a running Airflow's UI: `screenshot.py --url … --path … --out docs/flights-graph.png`.

It needs Chromium, on Debian `apt-get install chromium`. Airflow has to treat everyone as an admin, as AirflowInstance
does: its UI then logs the browser in by itself.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Error as BrowserError
from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
GRAPH_NODE = ".react-flow__node"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_POLL_SECONDS = 0.3
_STILL_LOOKS = 3

# The DAG pages show the grid or the graph, whichever this browser was last asked for.
_CHOOSE_GRAPH = "localStorage.setItem('default_dag_view', JSON.stringify('graph'))"
# What has to stay the same until the picture is taken: where the elements are and what they say.
_LOOK = "elements => elements.map(e => JSON.stringify(e.getBoundingClientRect()) + e.innerText)"


class ScreenshotError(RuntimeError):
    """A page of the UI did not come to show what was waited for."""


def screenshot(  # noqa: PLR0913 - every option is named at the call
    url: str,
    path: str,
    out: Path,
    *,
    wait_for: str = GRAPH_NODE,
    details: bool = True,
    size: tuple[int, int] = (1440, 900),
    scale: float = 1,
    timeout: float = 60,
    chromium: str = CHROMIUM,
) -> None:
    """Take a picture of a page; pages of DAGs show their graph.

    Args:
        url: The address of Airflow, for example `AirflowInstance.url`.
        path: The page under it, for example `/dags/flights/runs/<run id>`; a whole address under `url` will do.
        out: The PNG file to write.
        wait_for: A CSS selector: the picture is taken once such elements are there and have come to rest.
        details: Show the panel beside the graph, too.
        size: Width and height of the window in CSS pixels.
        scale: Pixels of the picture per CSS pixel.
        timeout: Seconds until the page has to be ready.
        chromium: The browser's program.

    Raises:
        ScreenshotError: If there is no browser, or the page was not ready in time; the message holds its text.
    """
    if not Path(chromium).exists():
        raise ScreenshotError(f"no browser at {chromium}: install Chromium (Debian: apt-get install chromium)")
    deadline = time.monotonic() + timeout
    address = url.rstrip("/") + "/" + path.removeprefix(url).lstrip("/")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]}, device_scale_factor=scale)
            page.set_default_timeout(timeout * 1000)
            page.add_init_script(_CHOOSE_GRAPH)
            page.goto(address)
            _wait_still(page, wait_for, deadline)
            if not details:
                page.get_by_role("button", name="Collapse Details Panel").click()
                page.locator(".react-flow__controls-fitview").click()
                page.add_style_tag(content=".react-flow__minimap { display: none }")  # covers nodes in a flat window
                page.mouse.move(0, 0)
                _wait_still(page, wait_for, deadline)
            out.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=out)
        except BrowserError as error:
            raise ScreenshotError(f"the browser could not show {address}: {error}") from error
        finally:
            browser.close()


def _wait_still(page: Page, selector: str, deadline: float) -> None:
    """Wait until elements are there, and neither they nor their text change any more."""
    elements = page.locator(selector)
    before: list[str] = []
    still = 0
    page.wait_for_load_state("networkidle")
    while still < _STILL_LOOKS:
        if time.monotonic() > deadline:
            state = "still moved" if before else "were not there"
            text = page.locator("body").inner_text()[:1000]
            raise ScreenshotError(f"elements {selector!r} of {page.url} {state} at the deadline; the page says\n{text}")
        now: list[str] = elements.evaluate_all(_LOOK)
        still = still + 1 if now and now == before else 0
        before = now
        time.sleep(_POLL_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Take a picture from the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Take a picture of a page of a running Airflow's UI.")
    parser.add_argument("--url", required=True, help="the address of Airflow")
    parser.add_argument("--path", required=True, help="the page, for example /dags/flights/runs/<run id>")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--wait-for", default=GRAPH_NODE, help="CSS selector to wait for (default: the graph's nodes)")
    parser.add_argument("--graph-only", action="store_true", help="leave out the panel beside the graph")
    parser.add_argument("--width", type=int, default=1440, help="of the window, in CSS pixels")
    parser.add_argument("--height", type=int, default=900, help="of the window, in CSS pixels")
    parser.add_argument("--scale", type=float, default=1, help="pixels per CSS pixel")
    parser.add_argument("--timeout", type=float, default=60, help="seconds until the page has to be ready")
    parser.add_argument("--chromium", default=CHROMIUM, help="the browser's program")
    options = parser.parse_args(arguments)
    try:
        screenshot(
            options.url,
            options.path,
            options.out,
            wait_for=options.wait_for,
            details=not options.graph_only,
            size=(options.width, options.height),
            scale=options.scale,
            timeout=options.timeout,
            chromium=options.chromium,
        )
    except ScreenshotError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
