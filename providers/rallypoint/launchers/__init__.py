"""WHERE a gang runs: one module per launcher, one protocol for all."""
