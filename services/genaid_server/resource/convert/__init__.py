"""Between the resource manager's core and its contracts, both ways: a module for each service."""
