"""Retry a failed flow run in Prefect's UI as a person does: with a browser, the button, and the dialog that asks.

`prefect_retry.py --out docs/prefect-retry.png` starts a private Prefect, lets the training of a small pipeline break,
presses Retry, and takes a picture of the page once the run has completed. It needs Chromium, on Debian
`apt-get install chromium`.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import Locator, Page, sync_playwright
from prefect_instance import PrefectInstance, PrefectInstanceError
from screenshot import CHROMIUM, FLAGS

PIPELINE = Path(__file__).resolve().parent.parent / "tests" / "e2e" / "flows" / "broken_once.py"
DEPLOYMENT = "churn/nightly"
# The colours that the UI was last asked for in this browser.
_CHOOSE_LIGHT = "localStorage.setItem('color-scheme', JSON.stringify('light'))"
_HIDE_ROWS = """rows => {
    const first = rows.findLastIndex(row => row.innerText.includes("/churn/prepare:"));
    rows.forEach((row, index) => {
        if (index < first || row.innerText.includes(" opened on ")) row.style.display = "none";
    });
}"""
_POLL_SECONDS = 0.2


class NoBrowserError(RuntimeError):
    """There is no Chromium that can be started."""


class UiError(RuntimeError):
    """The UI did not come to show what was waited for."""


@contextlib.contextmanager
def browser_page(*, size: tuple[int, int] = (1440, 900), scale: float = 1, chromium: str = CHROMIUM) -> Iterator[Page]:
    """Open an empty page of a headless Chromium, in light colours.

    Args:
        size: Width and height of the window in CSS pixels.
        scale: Pixels of a picture per CSS pixel.
        chromium: The browser's program.

    Raises:
        NoBrowserError: It cannot be started.
    """
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        except BrowserError as error:
            raise NoBrowserError(
                f"no Chromium can be started from {chromium} (Debian: apt-get install chromium): {error}"
            ) from error
        try:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]}, device_scale_factor=scale)
            page.add_init_script(_CHOOSE_LIGHT)
            yield page
        finally:
            browser.close()


class FlowRunPage:
    """The page of a flow run.

    Args:
        page: Of the browser.
        url: The address of the UI.
        flow_run: The id of the flow run.
    """

    def __init__(self, page: Page, url: str, flow_run: str) -> None:
        self.page = page
        page.goto(f"{url}/runs/flow-run/{flow_run}")

    @property
    def state(self) -> str:
        """What the badge of the flow run's state says; empty while there is none."""
        return "".join(self._heading.locator(".state-badge").all_inner_texts()).strip()

    def wait_for_state(self, name: str, *, timeout: float = 120) -> None:
        """Wait until the badge says the name of a state.

        Raises:
            UiError: It does not.
        """
        _wait_for(lambda: self.state == name, lambda: f"the page to say {name}; it says {self.text}", timeout=timeout)

    @property
    def text(self) -> str:
        """The beginning of what the page says."""
        return " ".join(self.page.locator("body").inner_text().split())[:1000]

    def retry(self, began: Callable[[], bool], *, timeout: float = 120) -> None:
        """Press Retry and confirm it, until the flow runs again.

        The runner of a deployment may report the end of the last process a little after the button was pressed, and so
        end the retry before it began; then the button is there again, and is pressed again.

        Args:
            began: Whether the flow runs again.
            timeout: Seconds until it has to.

        Raises:
            UiError: It does not.
        """
        # The header's button; there is one of the same name in the dialog.
        button = self._heading.get_by_role("button", name="Retry", exact=True)
        deadline = time.monotonic() + timeout
        while not began():
            if time.monotonic() > deadline:
                raise UiError(f"waited {timeout:.0f} s for the flow to run again; the page says {self.text}")
            if self.state in {"Failed", "Crashed"} and button.is_visible():
                button.click()
                dialog = self.page.get_by_role("dialog")
                dialog.get_by_role("button", name="Retry", exact=True).click()
                dialog.wait_for(state="hidden")
            time.sleep(_POLL_SECONDS)

    @property
    def _heading(self) -> Locator:
        return self.page.locator("header.page-heading-flow-run")


def serve_pipeline(instance: PrefectInstance, folder: Path, *, seconds: float = 0.2, timeout: float = 120) -> str:
    """Serve the pipeline that breaks once, start a run of it, and wait until that has failed and its process has ended.

    Args:
        instance: The Prefect server.
        folder: Where the pipeline's jobs write what they did.
        seconds: What an epoch of the training takes.
        timeout: Seconds that each step may take.

    Returns:
        The id of the flow run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    instance.serve(PIPELINE)
    with instance.client() as client:

        def deployment() -> Any:
            answer = client.get(f"/deployments/name/{DEPLOYMENT}")
            return answer.json()["id"] if answer.is_success else None

        served = _wait_for(deployment, lambda: f"{DEPLOYMENT}; {instance.log_tail('serve')}", timeout=timeout)
        wanted = {"name": "nightly-model", "parameters": {"folder": str(folder), "seconds": seconds}}
        made = client.post(f"/deployments/{served}/create_flow_run", json=wanted).raise_for_status()
        flow_run = str(made.json()["id"])

        def failed() -> bool:
            state = client.get(f"/flow_runs/{flow_run}").json()["state_type"]
            if state in {"COMPLETED", "CRASHED"}:
                raise UiError(f"got a flow run that is {state}, expected one that has failed")
            return bool(state == "FAILED")

        _wait_for(failed, lambda: f"the flow run to fail; {instance.log_tail('serve')}", timeout=timeout)
    process = int(lines(folder, "flow")[-1])
    _wait_for(lambda: not psutil.pid_exists(process), lambda: "the flow's process to end", timeout=timeout)
    return flow_run


def lines(folder: Path, name: str) -> list[str]:
    """Return the lines that the pipeline has written to a file so far."""
    path = folder / name
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _wait_for(condition: Callable[[], Any], what: Callable[[], str], *, timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise UiError(f"waited {timeout:.0f} s for {what()}")
        time.sleep(_POLL_SECONDS)
    return value


def take_picture(out: Path, *, size: tuple[int, int], scale: float, chromium: str) -> None:
    """Retry a broken run on a private Prefect and take a picture of its page once it has completed."""
    with tempfile.TemporaryDirectory(prefix="prefect-retry-") as temporary:
        home, folder = Path(temporary, "home"), Path(temporary, "witness")
        environment = {"RALLYPOINT_STORE": str(Path(temporary, "store"))}
        with (
            browser_page(size=size, scale=scale, chromium=chromium) as page,
            PrefectInstance(home, fast=True, env=environment) as instance,
        ):
            shown = FlowRunPage(page, instance.url, serve_pipeline(instance, folder, seconds=0.6))
            shown.wait_for_state("Failed")
            shown.retry(lambda: len(lines(folder, "flow")) > 1)
            shown.wait_for_state("Completed")
            page.reload()  # no message of the retry covers the page
            shown.wait_for_state("Completed")
            page.wait_for_load_state("networkidle")
            _show_resumption(page)
            out.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=out, animations="disabled")


def _show_resumption(page: Page) -> None:
    """Show the run's log from the retry's first stage on, without the lines that name this machine."""
    rows = page.locator(".log-row")
    rows.filter(has_text="epoch 12 of 12").wait_for()
    rows.evaluate_all(_HIDE_ROWS)
    page.mouse.move(0, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the picture from the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Retry a broken run in Prefect's UI and take a picture of it.")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--width", type=int, default=1440, help="of the window, in CSS pixels")
    parser.add_argument("--height", type=int, default=1010, help="of the window, in CSS pixels")
    parser.add_argument("--scale", type=float, default=1, help="pixels per CSS pixel")
    parser.add_argument("--chromium", default=CHROMIUM, help="the browser's program")
    options = parser.parse_args(arguments)
    try:
        size = (options.width, options.height)
        take_picture(options.out, size=size, scale=options.scale, chromium=options.chromium)
    except (NoBrowserError, UiError, BrowserError, PrefectInstanceError, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
