"""The models on disk: their records, their layout, their installation and their checks."""
