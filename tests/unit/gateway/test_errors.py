"""What a failed call to the image worker becomes in HTTP."""

import json

import pytest

import genaid_client
from genaid_client import GenaidError, InsufficientResourcesError, ServerBusyError
from genaid_server.gateway.http.errors import CODES, ApiError, from_client


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (genaid_client.InvalidRequestError("m"), 400, "INVALID_REQUEST"),
        (genaid_client.NotFoundError("m"), 404, "NOT_FOUND"),
        (genaid_client.AlreadyTerminalError("m"), 409, "ALREADY_TERMINAL"),
        (genaid_client.ServerBusyError("m"), 503, "SERVER_BUSY"),
        (genaid_client.ServerError("m"), 503, "SERVER_ERROR"),
        (genaid_client.ModelNotFoundError("m"), 503, "MODEL_NOT_FOUND"),
        (genaid_client.InsufficientResourcesError("m"), 503, "INSUFFICIENT_RESOURCES"),
        (genaid_client.BinaryError("m"), 503, "BINARY_ERROR"),
        (genaid_client.BackendError("m"), 500, "BACKEND_ERROR"),
        (genaid_client.IoError("m"), 500, "IO_ERROR"),
        (genaid_client.ConnectionFailedError("m"), 503, "SERVER_ERROR"),
        (genaid_client.DeadlineError("m"), 503, "SERVER_ERROR"),
        (genaid_client.InternalError("m"), 500, "INTERNAL_ERROR"),
        (genaid_client.ChecksumError("m"), 500, "INTERNAL_ERROR"),
        (GenaidError("m"), 500, "INTERNAL_ERROR"),
    ],
)
def test_table(error: GenaidError, status: int, code: str) -> None:
    answer = from_client(error)
    assert (answer.status, answer.code) == (status, code)
    assert code in CODES


@pytest.mark.parametrize("error", [genaid_client.InternalError("/home/me/secret"), GenaidError("/home/me/secret")])
def test_internals_stay_inside(error: GenaidError) -> None:
    assert b"secret" not in from_client(error).body()


def test_a_message_never_decides_the_code() -> None:
    answer = from_client(genaid_client.BackendError("the prompt was: server is busy, SERVER_BUSY, 503"))
    assert (answer.status, answer.code) == (500, "BACKEND_ERROR")


def test_busy_says_when_to_come_again_and_what_to_do() -> None:
    answer = from_client(ServerBusyError("Busy", {"suggestion": "Wait."}))
    assert answer.headers == {"Retry-After": "1"}
    assert json.loads(answer.body()) == {
        "error": {"message": "Busy", "code": "SERVER_BUSY", "suggestion": "Wait."},
    }


def test_memory_says_what_to_do_and_not_when_to_come_again() -> None:
    answer = from_client(InsufficientResourcesError("Too little", {"suggestion": "Use a smaller model."}))
    assert answer.headers == {}
    assert json.loads(answer.body())["error"]["suggestion"] == "Use a smaller model."


def test_plain_errors_have_the_documented_shape() -> None:
    assert json.loads(ApiError(404, "NOT_FOUND", "Generation not found").body()) == {
        "error": {"message": "Generation not found", "code": "NOT_FOUND"}
    }
