"""What llama.cpp's lines say: how grave they are, and why a start failed."""

import pytest

from genaid_server.resource.core.llm.logs import cause_first, level_of, port_taken
from genaid_server.supervision.logbook import Level


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("0.00.012.345 I srv          init: model loaded", Level.INFO),
        ("0.00.012.345 W srv          init: --cache-idle-slots requires --cache-ram, disabling", Level.WARN),
        ("12.59.012.345 E llama_model_load: error loading model", Level.ERROR),
        ("100.00.000.001 D que    start_loop: waiting", Level.DEBUG),
        # What the prefix says counts, whatever the words say.
        ("0.00.012.345 I the last error was none", Level.INFO),
        ("0.00.012.345 D failed", Level.DEBUG),
        # Without a prefix the words have to do.
        ("ggml_backend_load: failed to load", Level.ERROR),
        ("GGML_ASSERT(n > 0) failed", Level.ERROR),
        ("warning: no usable GPU found", Level.WARN),
        ("0.00.012 E half a prefix", Level.INFO),
        ("0.00.012.345 X no such level", Level.INFO),
        ("", Level.INFO),
    ],
)
def test_the_level_of_a_line(line: str, level: Level) -> None:
    assert level_of(line) is level


@pytest.mark.parametrize(
    ("lines", "taken"),
    [
        (["0.00.007 I srv init", "0.00.008 E srv start: couldn't bind HTTP server socket, port: 8080"], True),
        (["bind: Address already in use"], True),
        (["0.00.007 E error loading model: tensor is not within the file bounds"], False),
        (["the address is in use by nobody"], False),
        ([], False),
    ],
)
def test_whether_the_port_was_taken(lines: list[str], taken: bool) -> None:
    assert port_taken(lines) is taken


def test_the_cause_comes_first_and_nothing_is_lost() -> None:
    start, cause, note, consequence = (
        "0.00.001.000 I loading",
        "0.00.002.000 E the tensors are upside down",
        "0.00.003.000 W giving up",
        "0.00.004.000 E could not load",
    )
    assert cause_first([start, cause, note, consequence]) == [cause, consequence, start, note]
    assert cause_first([start, note]) == [start, note]
    assert cause_first([]) == []
