"""What the demo makes of an Airflow that answers late, on a machine that has other things to do."""

from __future__ import annotations

import demo
import httpx
import pytest
from airflow_api import AirflowApiError, DagRun
from rich.console import Console


class SlowBoard:
    """A board whose Airflow answers only some of the time."""

    dag_id, run_id = "flights", "r"

    def __init__(self, *answers):
        self.answers = list(answers)

    def refresh(self):
        state = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if state is None:
            raise httpx.ReadTimeout("timed out")
        return DagRun(self.dag_id, self.run_id, state, run_type="manual", conf={}, duration=None)

    def changes(self):
        return iter(())


def test_an_answer_that_came_too_late_ends_no_demo():
    run = demo.follow(SlowBoard("running", None, None, "success"), Console(), timeout=60)
    assert run.state == "success"


@pytest.mark.parametrize(("answers", "state"), [(["running"], "running"), ([None], "unknown")])
def test_a_run_that_does_not_end_in_time_is_named_with_what_to_do(answers, state):
    with pytest.raises(AirflowApiError, match=f"run r of DAG flights is {state} after 0 s.*--timeout"):
        demo.follow(SlowBoard(*answers), Console(), timeout=0)


def test_an_airflow_that_does_not_answer_is_one_sentence_and_no_traceback(monkeypatch, capsys, tmp_path):
    def never_answered(options, console):
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(demo, "run_demo", never_answered)
    assert demo.main(["--home", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "the private Airflow did not answer (timed out)" in said
    assert "processes; run it again" in said


def test_the_metrics_of_one_model_or_of_several_are_beside_the_baselines():
    baseline = {"roc_auc": 0.66}

    one = demo.metrics_table({"model": {"roc_auc": 0.69}, "baseline": baseline})
    several = demo.metrics_table({"models": {"gbt": {"roc_auc": 0.69}, "logistic": {}}, "baseline": baseline})

    assert [column.header for column in one.columns] == ["metric", "model", "baseline"]
    assert [column.header for column in several.columns] == ["metric", "gbt", "logistic", "baseline"]
    assert demo.metrics_table({"baseline": baseline}) is None
    assert demo.metrics_table({"models": "none"}) is None
