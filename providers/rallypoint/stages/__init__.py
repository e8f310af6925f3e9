"""HOW A STAGE SURVIVES: its key, its store, its ledger, the retry rule, events, failures and the engine.

==============  ==================================================================================
``key``         the name of a stage that survives every kind of retry
``store``       a folder or bucket that the orchestrator and the job both reach
``ledger``      the durable record of a stage's attempts
``rule``        what a retry does: one pure function
``events``      reads what the job's processes report
``view``        folds events into what is known of an attempt
``outcome``     judges how an attempt ended; success needs every process's word
``failures``    says which rank failed first, why, and whether a retry can help
``prune``       what is no longer kept, of everything
``retention``   decides that of old attempts, and removes it
``attempt``     what goes in and out of the engine
``engine``      starts, watches, concludes and cancels an attempt
==============  ==================================================================================
"""
