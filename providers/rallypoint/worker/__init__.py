"""The remote half: runs inside the job, beside the user's code.

Only the standard library is imported here, and nothing of the rest of Rallypoint: this package is shipped with every
gang, so that a cluster, or another virtual environment, needs no installation of Rallypoint.

====================  ==================================================================
``stage``             what user code sees: checkpoints, artifacts, progress
``process``           wraps one process: reports its start, its failure and its end
``entry``             runs the user's script, module or function
``events``            writes the event lines
``reports``           joins progress and metrics that come faster than anybody looks
``storage``           keeps folders and files in the store
``bucket``            reads and writes the objects of a bucket
``supervisor``        starts a gang on one host and holds it together (local launcher)
``probe``             says what a Python interpreter has, without importing it
====================  ==================================================================
"""
