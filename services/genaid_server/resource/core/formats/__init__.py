"""The headers of model files, read within bounds."""
