"""Counts words with Spark; the session is where the job says, and has what the job gives it."""

from __future__ import annotations

import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

import rallypoint

spark = SparkSession.builder.getOrCreate()
lines = spark.range(int(sys.argv[1])).select(f.concat_ws(" ", f.col("id") % 7, f.col("id") % 3).alias("line"))
words = lines.select(f.explode(f.split("line", " ")).alias("word")).groupBy("word").count().orderBy("word")
stage = rallypoint.stage()
table = stage.save_artifact(
    lambda folder: words.write.mode("overwrite").parquet(f"file://{folder}/words"), name="words"
)
stage.result({"table": table, "counts": {row["word"]: row["count"] for row in words.collect()}})
