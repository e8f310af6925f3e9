"""Ray Serve: declarative deploys that restore what was there when they fail.

================  ======================================================================
``job``           the jobs, as pure data
``question``      what an application is asked, as pure data
``failures``      what the errors of a deploy mean
``driver``        runs one of them: a process that needs the standard library only
``deploy``        apply, wait, probe, restore: the order of steps
``client``        the dashboard's REST API
``live``          what the cluster says of its applications
``merge``         one application's config among the others'
``blame``         which replica failed, with which lines of its log
``probe``         sends the question, and looks at the answer
``packages``      local code, zipped and uploaded
``history``       the configs that were applied, which Ray does not keep
================  ======================================================================

HTTP, leases and the like are those of every deploy: `rallypoint.frameworks.deploy`.
"""
