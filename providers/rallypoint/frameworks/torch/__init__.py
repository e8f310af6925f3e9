"""Elastic PyTorch: ``torchrun`` as a stage."""
