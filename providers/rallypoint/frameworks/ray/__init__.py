"""Ray: jobs, Train, Tune and Serve as stages."""
