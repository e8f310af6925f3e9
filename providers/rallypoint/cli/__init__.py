"""The command line: plan, run and look at stages without an orchestrator, or beside one.

===============  ==========================================================================
``commands``     the commands and their options
``target``       finds the `Job` that ``FILE.py:NAME`` names
``place``        which store and launcher are meant, and which stage
``plan``         shows what a job compiles to
``run``          runs a job as a stage
``status``       shows stages and attempts
``logs``         shows what processes wrote
``serve``        the versions of an application on Ray Serve
``prune``        removes what old attempts have left
``tensorboard``  opens a TensorBoard on what a stage wrote for it
``terminal``     what the commands share in writing to a terminal
===============  ==========================================================================

Exit codes: 0 success, 1 the stage failed, 2 the input was wrong or something is out of reach, 130 Ctrl-C.
"""

from __future__ import annotations

import sys

from rallypoint.cli.commands import app
from rallypoint.cli.terminal import complain, show_failure
from rallypoint.errors import RallypointError, StageFailedError


def main() -> None:
    """Run the command line; the entry point of ``rallypoint``."""
    try:
        app()
    except StageFailedError as error:
        show_failure(error.report)
        sys.exit(1)
    except RallypointError as error:
        complain(str(error))
        sys.exit(2)
