"""Numbers as people read them: sizes, speeds and times."""

from typing import Final

UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
STEP: Final = 1024


def format_bytes(count: float) -> str:
    """A size of 0 bytes or more, with two decimals and a step of 1024 from KiB on: `4.07 GiB`, `512 B`."""
    if count < STEP:
        return f"{count:.0f} B"
    size = float(count)
    for unit in UNITS:
        size /= STEP
        if size < STEP - 0.005 or unit == UNITS[-1]:  # what would be rounded to 1024.00 belongs to the next unit
            break
    return f"{size:.2f} {unit}"


def format_speed(bytes_per_second: float) -> str:
    """A speed: `85.10 MiB/s`."""
    return f"{format_bytes(bytes_per_second)}/s"


def format_seconds(seconds: float) -> str:
    """A time of 0 seconds or more in its two greatest units: `45s`, `2m 05s`, `3h 07m`, `2d 03h`."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if days:
        return f"{days}d {hours % 24:02}h"
    if hours:
        return f"{hours}h {minutes % 60:02}m"
    if minutes:
        return f"{minutes}m {whole % 60:02}s"
    return f"{whole}s"
