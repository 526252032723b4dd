"""What fits: how much memory a model needs, whether there is that much, and how best to run it."""
