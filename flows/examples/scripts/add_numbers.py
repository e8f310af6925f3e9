"""Add the numbers of the job's parameters; as a plain script it adds none."""

import rallypoint

stage = rallypoint.stage()
stage.result({"sum": sum(stage.params.get("numbers", []))})
