"""Generative AI on a person's own machine, for other programs: the services."""
