"""Client and services name the same failures."""

from genaid_client import channel, errors
from genaid_server.kit import rpc
from genaid_server.kit.errors import DomainError

OF_THE_CLIENT_ALONE = {
    "ConnectionFailedError": "UNREACHABLE",
    "NoAddressError": "NO_ADDRESS",
    "DeadlineError": "DEADLINE_EXCEEDED",
    "InternalError": "INTERNAL",
}


def test_each_reason_has_the_same_class_on_both_sides() -> None:
    server = {error.__name__: error.reason for error in DomainError.__subclasses__()}
    client = {error.__name__: error.reason for error in errors.GenaidError.__subclasses__()}
    assert client == server | OF_THE_CLIENT_ALONE


def test_no_reason_has_two_classes() -> None:
    reasons = [error.reason for error in errors.GenaidError.__subclasses__()]
    assert len(reasons) == len(set(reasons))


def test_both_sides_speak_of_the_same_domain() -> None:
    assert channel.DOMAIN == rpc.DOMAIN
