"""What a person does with a failed run: opens its page, presses Retry, and sees it go green, the training resumed."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def page():
    from prefect_retry import NoBrowserError, browser_page

    with ExitStack() as stack:
        try:
            page = stack.enter_context(browser_page())
        except NoBrowserError as error:
            pytest.skip(f"THE RETRY FROM THE UI WAS NOT TESTED: {error}")
        yield page


@pytest.fixture
def instance(tmp_path):
    from prefect_instance import PrefectInstance

    with PrefectInstance(tmp_path / "home", fast=True, env={"RALLYPOINT_STORE": str(tmp_path / "store")}) as instance:
        yield instance


def test_the_button_retry_resumes_the_training_and_the_run_goes_green(page, instance, tmp_path):
    from prefect_retry import FlowRunPage, lines, serve_pipeline

    did = tmp_path / "did"
    flow_run = serve_pipeline(instance, did)
    assert lines(did, "epochs") == ["1", "2", "3", "4", "5"]
    shown = FlowRunPage(page, instance.url, flow_run)
    shown.wait_for_state("Failed")

    shown.retry(lambda: len(lines(did, "flow")) > 1)
    shown.wait_for_state("Completed")

    assert lines(did, "epochs") == [str(epoch) for epoch in range(1, 13)]  # no epoch twice: from its checkpoint
    assert lines(did, "prepared") == ["prepared"]  # it had succeeded
    assert lines(did, "evaluated") == ["evaluated"]
    page.reload()  # logs come in batches; the page of a completed run does not ask for more
    page.locator(".log-row", has_text="epoch 12 of 12").wait_for()
