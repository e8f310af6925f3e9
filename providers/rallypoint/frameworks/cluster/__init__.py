"""What the processes of a temporary cluster need, whichever framework's it is: Ray's and Spark's build on it.

=============  ==============================================================================
``addresses``  whether something listens there
``daemon``     a process of the framework that leaves nothing behind
``nodes``      one process of the gang: it waits for the others, and keeps its daemon running
=============  ==============================================================================

It runs in the job, with the standard library only.
"""
