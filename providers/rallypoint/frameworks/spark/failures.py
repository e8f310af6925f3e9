"""What the errors of Spark mean: whether a retry can help, and what to do."""

from __future__ import annotations

from rallypoint.frameworks.spark.cluster_failures import APPLICATION_RULES, CLUSTER_RULES
from rallypoint.spec.failure import FailureRule, Kind

_OURS = r"^rallypoint\.frameworks\.spark\."

FAILURE_RULES: tuple[FailureRule, ...] = (
    *CLUSTER_RULES,
    FailureRule(
        "Spark cannot start here", Kind.USER, "correct what the message names, then retry the stage",
        exception=rf"{_OURS}.*(JavaMissingError|FileMissingError|SecretMissingError|S3AMissingError)$",
    ),
    FailureRule(
        "out of memory", Kind.RETRYABLE,
        "give the driver or the executors more memory (driver_memory=, executor_memory=, "
        "conf spark.executor.memoryOverhead), or make the partitions smaller",
        message=r"java\.lang\.OutOfMemoryError|beyond physical memory limits|exceeding (physical |virtual )?memory "
        r"limits|OOMKilled|(exit|status|code):? 137\b|SparkOutOfMemoryError|UNABLE_TO_ACQUIRE_MEMORY",
        retry_after=60,
    ),
    FailureRule(
        "the Spark master cannot be reached", Kind.RETRYABLE, "look whether it runs, and correct master=",
        exception=rf"{_OURS}.*MasterUnreachableError$", retry_after=30,
        message=r"All masters are unresponsive|Master removed our application",
    ),
    FailureRule(
        "the Spark Connect server cannot be reached", Kind.RETRYABLE, "look whether it runs, and correct connect=",
        exception=rf"{_OURS}.*ConnectUnreachableError$|RetriesExceeded$", retry_after=30,
        message=r"StatusCode\.UNAVAILABLE|INVALID_HANDLE\.SESSION_(CLOSED|CHANGED|NOT_FOUND)",
    ),
    FailureRule(
        "Spark has no connector for this file system", Kind.USER,
        "add the connector with packages= (the message names it), or its jars with jars=",
        message=r"S3AFileSystem not found|No FileSystem for scheme|UNSUPPORTED_FILE_SYSTEM",
    ),
    FailureRule(
        "Spark cannot resolve packages", Kind.UNKNOWN,
        "correct packages=, name a repository that the job's host reaches with repositories=, or give files with jars=",
        message=r"[Uu]nresolved dependenc|UNRESOLVED DEPENDENCIES|Server access error at url",
    ),
    FailureRule(
        "a class is missing on Spark's class path", Kind.USER, "add what has it with packages= or jars=",
        message=r"\b(ClassNotFoundException|NoClassDefFoundError|DATA_SOURCE_NOT_FOUND)\b|Failed to load class",
    ),
    FailureRule(
        "Spark's workers have another Python", Kind.USER,
        "use the same minor version on the executors: conf spark.pyspark.python, or archives= with an environment",
        message=r"PYTHON_VERSION_MISMATCH|Python in worker has different version",
    ),
    FailureRule(
        "Spark cannot analyse the query", Kind.USER, "correct the query, the table's name or the path",
        exception=r"(^|\.)(AnalysisException|ParseException|NoSuchTableException)$",
    ),
    FailureRule(
        "shuffle data was lost", Kind.RETRYABLE,
        "look at the executor's end; more partitions or executor memory make it rarer", retry_after=10,
        message=r"FetchFailed(Exception)?\b|MetadataFetchFailedException",
    ),
    FailureRule(
        "a Spark executor was lost", Kind.RETRYABLE,
        "look at the executor's log in the Spark UI: it was killed, ran out of memory, or lost its host",
        message=r"ExecutorLostFailure|SlaveLost|ExecutorLoss|Remote RPC client disassociated", retry_after=10,
    ),
    FailureRule(
        "a Python worker of Spark was lost", Kind.RETRYABLE,
        "the kernel kills what uses too much memory: look at the executor's log, or give the executors more",
        message=r"Python worker exited unexpectedly", retry_after=30,
    ),
    FailureRule(
        "Spark's driver was lost", Kind.RETRYABLE,
        "its JVM has ended: look at the last lines, and give it more memory with driver_memory=",
        exception=rf"{_OURS}.*DriverLostError$", retry_after=30,
    ),
    FailureRule(
        "the Spark application was ended", Kind.RETRYABLE, "look who stopped it, and at what failed first", echo=True,
        message=r"SparkContext was shut down|on a stopped SparkContext|has been killed\. Reason", retry_after=10,
    ),
    *APPLICATION_RULES,
)  # fmt: skip
