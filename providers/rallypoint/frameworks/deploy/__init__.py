"""What deploying to a running server needs, whichever server it is: Ray Serve and TensorFlow Serving build on it.

===============  ===================================================================
``rest``         one request to a REST API, and the errors that tell why none helped
``comparison``   where an answer differs from the expected one
``records``      small objects in the store, some of them created only once
``lease``        one deploy at a time
``termination``  SIGTERM as an exception, but not in the middle of a write
===============  ===================================================================

It runs in the job, with the standard library only (a bucket's client for a bucket).
"""
