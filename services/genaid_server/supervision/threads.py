"""How many threads to compute with."""


def default_threads(cores: int) -> int:
    """Threads for so many cores: all of two, then some are left for the rest of the machine (documented formula)."""
    if cores <= 2:
        return max(1, cores)
    if cores <= 8:
        return cores - 1
    return cores - 2 if cores <= 16 else cores * 85 // 100
