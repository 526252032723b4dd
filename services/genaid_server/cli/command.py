"""How a command fails: as one message, never as a traceback, where the failure is an expected one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand

from genaid_client import GenaidError
from genaid_server.cli.output import fail
from genaid_server.kit.errors import DomainError


class Command(TyperCommand):
    """A command whose expected failures end as one message and exit status 1, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command (called by typer)."""
        with reported(as_json=bool(ctx.params.get("as_json"))):
            return super().invoke(ctx)


@contextmanager
def reported(*, as_json: bool) -> Iterator[None]:
    """Print the block's expected errors on stderr and leave with status 1."""

    try:
        yield
    except DomainError as error:
        raise fail(error.reason, _advised(error.message, error.facts), as_json=as_json) from error
    except GenaidError as error:
        raise fail(error.reason, _advised(error.message, error.metadata), as_json=as_json) from error
    except BrokenPipeError:  # the reader of our output has left; typer knows how to end quietly
        raise
    except OSError as error:
        if error.strerror is None:
            raise
        where = f": {error.filename}" if error.filename is not None else ""
        raise fail("IO_ERROR", f"{error.strerror}{where}", as_json=as_json) from error
    except UnicodeEncodeError as error:
        raise fail("INVALID_REQUEST", "An argument is not valid UTF-8 text.", as_json=as_json) from error


def _advised(message: str, facts: Mapping[str, str]) -> str:
    """The message with what to do about it, where it doesn't say that itself."""
    suggestion = facts.get("suggestion", "")
    return message if suggestion in message else f"{message.removesuffix('.')}. {suggestion}"
