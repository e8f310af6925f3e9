"""Runs an entry as a process of a gang: ``python -m rallypoint.worker script train.py --epochs 3``."""

from __future__ import annotations

import os
import sys

from rallypoint.worker import context, process
from rallypoint.worker.entry import run_entry

if __name__ == "__main__":
    sys.exit(process.run(lambda: run_entry(sys.argv[1:]), name=os.environ.get(context.PROCESS, "process-0")))
