"""Functions and a script as jobs of one plain process: called, mapped, and as a job object.

Run it with ``python flows/examples/python_job.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

import rallypoint
from rallypoint import PythonJob, Script
from rallypoint.prefect import python_task, run_stage

ADD_NUMBERS = Path(__file__).with_name("scripts") / "add_numbers.py"


@python_task(retries=2)
def count_vowels(city: str) -> int:
    """Count a city's vowels with a checkpoint after each letter: a retry goes on after the last one."""
    stage = rallypoint.stage()
    done, found = 0, 0
    if checkpoint := stage.latest_checkpoint():
        done, found = map(int, Path(checkpoint, "state").read_text(encoding="utf-8").split())
    for number in range(done + 1, len(city) + 1):
        found += city[number - 1].lower() in "aeiou"
        state = f"{number} {found}"
        stage.save_checkpoint(lambda folder, state=state: Path(folder, "state").write_text(state, encoding="utf-8"))
        stage.report(step=number, total=len(city), found=found)
    return found


@flow(name="example-python")
def pipeline(cities: tuple[str, ...] = ("Oslo", "Quito", "Rome")) -> dict[str, Any]:
    """Run a stage for each city, and then a script."""
    vowels = count_vowels.map(cities).result()
    job = PythonJob(Script(str(ADD_NUMBERS)), params={"numbers": vowels})
    return {"vowels": dict(zip(cities, vowels, strict=True)), **run_stage(job, name="add", retries=1)}


if __name__ == "__main__":
    print(pipeline())  # noqa: T201 - for who runs it
