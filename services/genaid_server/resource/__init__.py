"""The resource manager: models on disk, and what of the machine they may use."""
