"""TensorFlow Serving: a SavedModel becomes the next version of a served model, or nothing has changed.

=================  ==========================================================================
``job``            the job, as pure data
``driver``         runs it: the process that needs TensorFlow
``deploy``         put, wait, probe, label, prune; and on any failure take it back
``model``          the SavedModel: fetched from the store, or exported from Keras
``signature``      what a SavedModel takes and returns, compared with what is expected
``versions``       the model's base path: numbered versions, and who put them there
``labels``         the version labels in the text of a model config file
``served_labels``  sets them in the server's file, and waits until the server goes by them
``server``         the server's REST API
=================  ==========================================================================

No ``tensorflow_model_server`` could be installed where Rallypoint is developed: the tests run a small server that
speaks its published REST API and loads and runs SavedModels with TensorFlow.
"""
