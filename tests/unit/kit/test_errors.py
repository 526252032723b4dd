"""The reasons are a contract."""

import pytest

from genaid_server.kit.errors import DomainError, ErrorKind

DOCUMENTED = {
    "MODEL_NOT_FOUND",
    "DOWNLOAD_FAILED",
    "INSUFFICIENT_RESOURCES",
    "SERVER_ERROR",
    "PORT_IN_USE",
    "FILE_SYSTEM_ERROR",
    "CHECKSUM_ERROR",
    "BINARY_ERROR",
    "SERVER_BUSY",
    "NOT_FOUND",
    "INVALID_REQUEST",
    "BACKEND_ERROR",
    "IO_ERROR",
    "ALREADY_TERMINAL",
}


def test_the_reasons_are_the_documented_ones() -> None:
    reasons = [error.reason for error in DomainError.__subclasses__()]
    assert sorted(reasons) == sorted(DOCUMENTED)


@pytest.mark.parametrize("error", DomainError.__subclasses__())
def test_an_error_carries_its_message_its_facts_and_a_kind(error: type[DomainError]) -> None:
    raised = error("Something is wrong.", field="prompt")
    assert str(raised) == raised.message == "Something is wrong."
    assert raised.facts == {"field": "prompt"}
    assert isinstance(raised.kind, ErrorKind)
