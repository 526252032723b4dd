"""Bytes in words, for reasons that people read."""

from typing import Final

_KIB: Final = 2**10
_MIB: Final = 2**20
_GIB: Final = 2**30


def words(size: int) -> str:
    """A size with its unit, such as `7.4 GiB` or `512 MiB`."""
    if round(size / _MIB) >= _KIB:
        return f"{size / _GIB:.1f} GiB"
    if round(size / _KIB) >= _KIB:
        return f"{size / _MIB:.0f} MiB"
    if size >= _KIB:
        return f"{size / _KIB:.0f} KiB"
    return "1 byte" if size == 1 else f"{size} bytes"


def pair(one: int, other: int) -> tuple[str, str]:
    """Two sizes to be compared, exact enough that different sizes read differently."""
    if one == other or words(one) != words(other):
        return words(one), words(other)
    for unit, name in ((_MIB, "MiB"), (_KIB, "KiB")):
        exact = f"{one / unit:.1f} {name}", f"{other / unit:.1f} {name}"
        if exact[0] != exact[1]:
            return exact
    return f"{one} bytes", f"{other} bytes"
