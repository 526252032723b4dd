"""What the service's log says of a download: that it begins, and how it ended."""

import logging
import re
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from genaid_server.resource.core.downloads.journal import Record

log = logging.getLogger(__name__)

_SECRETS: Final = re.compile(r"(?<=://)[^/\s]*@|(?<=\S)\?\S+")
"""Who asks, and what is asked with, in an address."""


def log_begin(record: Record) -> None:
    """One line at the begin, also where it goes on after the service was started again."""
    log.info("download %s begins: %s", record.id, _title(record))


def log_end(record: Record) -> None:
    """One line at the end, be it that of the service."""
    if record.failure is not None:
        cause = _SECRETS.sub("", record.failure.message.partition("\n")[0])
        log.warning("download %s failed: %s: %s", record.id, record.failure.code, cause)
        return
    how = record.phase if record.phase.terminal else "to be continued"
    log.info("download %s ended: %s%s", record.id, how, f" as {record.model_id}" if record.model_id else "")


def _title(record: Record) -> str:
    """What is fetched, without secrets, which an address may hold."""
    first, more = record.files[0].item.source, len(record.files) - 1
    name = PurePosixPath(urlsplit(first).path).name if isinstance(first, str) else f"{first.repo}/{first.file}"
    return f"{name} and {more} more" if more else name
