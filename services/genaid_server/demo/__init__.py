"""Small models with random weights, for tests, demonstrations and people without a model at hand."""
