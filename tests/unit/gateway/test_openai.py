"""What of the OpenAI dialect needs no engine: how long an engine is waited for, and the shape of errors."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from genaid_client import HealthState, Llm, ServerState
from genaid_server.gateway.http.errors import ApiError, invalid
from genaid_server.gateway.llm.mirror import REPLACED_WITHIN, RESTARTED_WITHIN, View, will_serve
from genaid_server.gateway.llm.openai import is_openai


def llm(state: ServerState, *, offloaded: bool = False) -> Llm:
    return Llm(
        state=state,
        health=HealthState.UNKNOWN,
        model_id="tiny",
        port=None,
        host="",
        pid=None,
        start_time=None,
        load_seconds=None,
        restarts=0,
        last_error="",
        load_percentage=0.0,
        last_event=None,
        config=None,
        serving=None,
        separates_reasoning=False,
        variant="cpu",
        generation=1,
        reasons={},
        offloaded=offloaded,
    )


@pytest.mark.parametrize("state", [ServerState.STARTING, ServerState.RUNNING, ServerState.STOPPING])
def test_an_engine_on_its_way_is_waited_for_however_long_it_takes(state: ServerState) -> None:
    assert will_serve(llm(state), 0)
    assert will_serve(llm(state), 1e9)


@pytest.mark.parametrize(
    ("state", "seconds"), [(ServerState.CRASHED, RESTARTED_WITHIN), (ServerState.STOPPED, REPLACED_WITHIN)]
)
def test_an_engine_that_ended_is_given_a_moment(state: ServerState, seconds: float) -> None:
    assert will_serve(llm(state), 0)
    assert will_serve(llm(state), seconds - 0.01)
    assert not will_serve(llm(state), seconds)


@pytest.mark.parametrize("state", ServerState)
def test_an_engine_that_makes_room_comes_back_by_itself(state: ServerState) -> None:
    assert will_serve(llm(state, offloaded=True), 1e9)


@pytest.mark.parametrize(
    ("change", "since"),
    [
        ({}, 10.0),
        ({"health": HealthState.ERROR}, 10.0),
        ({"load_percentage": 50.0}, 10.0),
        ({"state": ServerState.STARTING}, 20.0),
        ({"offloaded": False}, 20.0),
        ({"generation": 2}, 20.0),
        ({"start_time": datetime(2030, 1, 1, tzinfo=UTC)}, 20.0),
    ],
    ids=["nothing", "health", "progress", "state", "given up", "another life", "another manager"],
)
def test_from_when_on_an_engine_is_judged(change: dict[str, Any], since: float) -> None:
    away = llm(ServerState.STOPPED, offloaded=True)
    changed = replace(away, **change)
    assert View(away, 10.0).then(changed, 20.0) == View(changed, since)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/openai", True),
        ("/openai/v1/models", True),
        ("/openai/nowhere", True),
        ("/openaix", False),
        ("/v1/images/generations", False),
        ("/x/openai/v1", False),
    ],
)
def test_which_paths_speak_the_dialect(path: str, answer: bool) -> None:
    assert is_openai(path) is answer


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (415, "invalid_request_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_errors_have_the_shape_that_its_sdks_show(status: int, kind: str) -> None:
    error = ApiError(status, "A_CODE", "What to do.", suggestion="Not shown.")
    error.openai = True
    assert json.loads(error.body()) == {
        "error": {"message": "What to do.", "type": kind, "param": None, "code": "A_CODE"}
    }


def test_other_errors_keep_their_shape() -> None:
    assert json.loads(invalid("Wrong").body()) == {"error": {"message": "Wrong", "code": "INVALID_REQUEST"}}
