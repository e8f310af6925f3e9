"""One folder per framework: ``job.py`` (pure data, orchestrator side) and ``driver.py`` (inside the job).

A driver is the only place that imports its framework. The folder ``deploy`` is none: it is what the deploys to several
servers share.
"""
