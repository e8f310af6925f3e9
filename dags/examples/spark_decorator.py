"""``@task.spark``: a function with a Spark session; a retry goes on after the parts that were saved."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task


@dag(schedule=None, tags=["rallypoint", "example"], doc_md=__doc__)
def example_spark_decorator() -> None:
    """Count primes in ranges, one after another."""

    @task.spark(master="local[2]", driver_memory="1g", retries=1, deferrable=True)
    def primes(spark: Any, ranges: int = 4) -> dict[str, Any]:
        import json
        from pathlib import Path

        import rallypoint

        def is_prime(number: int) -> bool:
            return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))

        stage = rallypoint.stage()
        latest = stage.latest_checkpoint()
        counts: list[int] = json.loads(Path(latest, "counts.json").read_text()) if latest else []
        for part in range(len(counts), ranges):
            numbers = spark.sparkContext.range(part * 1000, (part + 1) * 1000, numSlices=2)
            counts.append(numbers.filter(is_prime).count())
            stage.save_checkpoint(lambda folder: Path(folder, "counts.json").write_text(json.dumps(counts)), step=part)
            stage.report(step=part + 1, total=ranges, unit="range")
        return {"primes": sum(counts)}

    primes(ranges=3)


example_spark_decorator()
