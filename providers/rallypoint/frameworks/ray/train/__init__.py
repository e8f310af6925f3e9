"""Ray Train: data-parallel training on Ray workers, as a stage."""
