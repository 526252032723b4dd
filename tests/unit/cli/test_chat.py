"""`genaid chat`: how an answer is read from an engine's port, how it looks, and how a conversation goes on."""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from contract.scripted import Script, serve
from fakes.chat_engine import DONE, HOLD, OK, ChatEngine, chat_engine, chunk, refused, said
from genaid.common.v1 import engines_pb2
from genaid.resource.v1 import llm_pb2
from genaid_client import BackendError, ConnectionFailedError, GenaidError, InvalidRequestError, ServerBusyError
from genaid_server.cli.commands.chat import Conversation
from genaid_server.cli.completions import MAX_LINE, ChatEndpoint, Part, stream_answer
from genaid_server.cli.main import app
from genaid_server.cli.views.answers import AnswerWriter, ChatAnswer, escaped
from support import GENAID, clean_environment, kill_tree

PATIENCE = 30.0  # seconds until a test that waits for something gives up
TIMINGS = {"predicted_n": 12, "predicted_per_second": 34.56, "prompt_n": 3}


@pytest.fixture
def engine() -> Iterator[ChatEngine]:
    with chat_engine() as engine:
        yield engine


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "GENAID_LLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def parts(engine: ChatEngine, *answer: bytes, key: str = "") -> list[Part]:
    engine.answers.append(b"".join(answer))
    return list(stream_answer(ChatEndpoint("127.0.0.1", engine.port, key), {"messages": []}))


# Reading an answer


def test_an_answer_comes_part_by_part(engine: ChatEngine) -> None:
    found = parts(engine, said("It ", "is\n", "día", timings=TIMINGS))
    assert [part.content for part in found] == ["", "It ", "is\n", "día", ""]
    assert found[-1] == Part(finish_reason="stop", timings=TIMINGS)
    assert engine.requests == [{"messages": [], "stream": True}]
    assert "authorization" not in engine.headers[0]
    assert engine.headers[0]["content-type"] == "application/json"


def test_reasoning_comes_apart(engine: ChatEngine) -> None:
    found = parts(engine, OK, chunk({"reasoning_content": "hm"}), chunk({"content": "yes"}), DONE)
    assert found == [Part(reasoning="hm"), Part("yes")]


def test_a_key_goes_along_and_is_not_shown(engine: ChatEngine) -> None:
    parts(engine, said("x"), key="secret")
    assert engine.headers[0]["authorization"] == "Bearer secret"
    assert "secret" not in repr(ChatEndpoint("h", 1, "secret"))


def test_what_is_no_data_is_passed_over(engine: ChatEngine) -> None:
    ping = b": ping\n\nevent: message\nid: 7\n"
    found = parts(engine, OK, ping, chunk({"content": "x"}).replace(b"data: ", b"data:"), b"\r\n", DONE)
    assert found == [Part("x")]


@pytest.mark.parametrize(
    "strange",
    [
        {"choices": []},
        {"choices": [None]},
        {"choices": [{"delta": None, "finish_reason": 7}]},
        {"choices": [{"delta": {"content": ["x"], "reasoning_content": 1}}], "timings": "fast"},
    ],
)
def test_fields_of_other_kinds_say_nothing(engine: ChatEngine, strange: object) -> None:
    assert parts(engine, OK, b"data: ", json.dumps(strange).encode(), b"\n\n", DONE) == [Part()]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([OK, chunk({"content": "x"})], "stopped in the middle"),
        ([OK], "stopped in the middle"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\ndata: {"], "stopped in the middle"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"], "stopped in the middle"),
        ([OK, b"data: {no json}\n\n"], "not a chat completion"),
        ([OK, b"data: []\n\n"], "not a chat completion"),
        ([OK, b'data: {"choices": 7}\n\n'], "not a chat completion"),
        ([OK, b"data: ", b"[" * 100_000, b"\n\n"], "not a chat completion"),
        ([OK, b'data: {"error": {"code": 500, "message": "out of memory"}}\n\n'], "out of memory"),
        ([OK, b'data: {"error": "broken"}\n\n'], "broken"),
        ([refused(500, b"<html>")], "HTTP status 500"),
        ([refused(404, b"")], "HTTP status 404"),
        ([refused(500, b'{"error": {"code": 500, "message": "a bug"}}')], "a bug"),
        ([refused(500, b'{"error": {}}')], "HTTP status 500"),
    ],
)
def test_an_engine_that_fails(engine: ChatEngine, answer: list[bytes], words: str) -> None:
    with pytest.raises(BackendError, match=words):
        parts(engine, *answer)


@pytest.mark.parametrize(
    ("status", "error", "kind", "words"),
    [
        (400, {"code": 400, "message": "temperature is wrong"}, InvalidRequestError, "temperature is wrong"),
        (
            400,
            {"code": 400, "message": "9 tokens", "type": "exceed_context_size_error"},
            InvalidRequestError,
            "too long: 9 tokens.*--context",
        ),
        (401, {"code": 401, "type": "authentication_error"}, InvalidRequestError, "--api-key-file"),
        (403, {}, InvalidRequestError, "GENAID_LLM_API_KEY"),
        (503, {"code": 503, "message": "Loading model"}, ServerBusyError, "Loading model.*again"),
        (503, {"message": "Loading model"}, ServerBusyError, "Loading model"),
    ],
)
def test_what_an_engine_refuses(
    engine: ChatEngine, status: int, error: object, kind: type[GenaidError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        parts(engine, refused(status, json.dumps({"error": error}).encode()))


def test_a_line_has_a_bound(engine: ChatEngine) -> None:
    room = MAX_LINE - len(b'data: {"choices": [{"delta": {"content": ""}}]}\n')
    line = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n'
    assert len(parts(engine, OK, line % (b"x" * room), DONE)[0].content) == room
    with pytest.raises(BackendError, match="more than 1048576 bytes"):
        parts(engine, OK, line % (b"x" * (room + 1)), DONE)
    with pytest.raises(BackendError, match="HTTP status 500"):
        parts(engine, refused(500, b'{"error": "' + b"x" * MAX_LINE + b'"}'))


def test_where_nothing_listens_it_says_what_to_do() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionFailedError, match="genaid llm status"):
            next(stream_answer(ChatEndpoint("127.0.0.1", holder.getsockname()[1]), {}))


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n"])
def test_something_else_on_the_port(engine: ChatEngine, answer: bytes) -> None:
    with pytest.raises(ConnectionFailedError, match="does not answer"):
        parts(engine, answer)


def test_an_iterator_that_is_left_ends_the_connection(engine: ChatEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answers = stream_answer(ChatEndpoint("127.0.0.1", listener.getsockname()[1]), {})
        first = threading.Thread(target=next, args=(answers,))
        first.start()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            connection.recv(65536)
            connection.sendall(OK + chunk({"content": "x"}))
            first.join()
            answers.close()
            while connection.recv(65536):
                pass


# How it looks


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred\x07\r\x00\x7f", "\\x1b[31mred\\x07\\r\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("\ud800", "\\ud800"),
        ("día \u202f\u3000日本語 ni\u200cne 👩\u200d💻", "día \u202f\u3000日本語 ni\u200cne 👩\u200d💻"),
    ],
)
def test_text_of_a_model_is_harmless_and_legible(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_how_fast_it_was_is_what_the_engine_tells() -> None:
    answer = ChatAnswer()
    for part in (Part("a"), Part("b"), Part(finish_reason="stop", timings=TIMINGS)):
        answer.add(part)
    assert (answer.content, answer.finish_reason) == ("ab", "stop")
    assert answer.summary() == "12 tokens, 34.6 tokens/s"


def test_without_timings_parts_are_counted() -> None:
    moments = iter([10.0, 11.0, 14.0])
    answer = ChatAnswer(lambda: next(moments))
    for part in (Part(), Part(reasoning="hm"), Part("a"), Part("b"), Part(finish_reason="length")):
        answer.add(part)
    assert (answer.reasoning, answer.tokens, answer.tokens_per_second) == ("hm", 3, 0.5)
    assert answer.summary().startswith("3 tokens, 0.5 tokens/s, cut off: ")


def test_what_is_too_short_has_no_speed() -> None:
    answer = ChatAnswer()
    answer.add(Part("a", timings={"predicted_n": "many", "predicted_per_second": None}))
    assert answer.summary() == "1 token"


def test_reasoning_is_left_out_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    page = AnswerWriter(reasoning=None)
    for part in (Part(reasoning="hm"), Part("yes\x1b"), Part("!")):
        page.write(part)
    page.end()
    page.end()
    assert capsys.readouterr().out == "yes\\x1b!\n"


def test_reasoning_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    page = AnswerWriter(reasoning=True)
    for part in (Part(reasoning="h"), Part(reasoning="m"), Part("yes\n"), Part()):
        page.write(part)
    page.end()
    assert capsys.readouterr().out == "hm\n\nyes\n"


@pytest.mark.parametrize(("reasoning", "dimmed"), [(None, True), (True, True), (False, False)])
def test_a_terminal_dims_reasoning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, reasoning: bool | None, dimmed: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    page = AnswerWriter(reasoning=reasoning)
    page.write(Part(reasoning="[bold]hm\x1b[31m"))
    page.write(Part("yes"))
    page.end()
    shown = capsys.readouterr().out
    assert ("\x1b[2m[bold]hm\\x1b[31m\x1b[0m" in shown) == dimmed
    assert shown.endswith("yes\n")


# A conversation


def conversation(engine: ChatEngine) -> Conversation:
    return Conversation(
        ChatEndpoint("127.0.0.1", engine.port), {"max_tokens": 5}, [{"role": "system", "content": "Be."}]
    )


def test_what_was_said_is_kept(engine: ChatEngine) -> None:
    engine.answers += [said("one"), said("two")]
    talk = conversation(engine)
    talk.ask("1?", lambda _: None)
    talk.ask("2?", lambda _: None)
    assert [request["max_tokens"] for request in engine.requests] == [5, 5]
    assert [message["content"] for message in engine.requests[1]["messages"]] == ["Be.", "1?", "one", "2?"]
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_of_an_answer_that_breaks_off_as_much_as_there_is(engine: ChatEngine) -> None:
    engine.answers += [OK + chunk({"content": "half"}), refused(500, b"{}")]
    talk = conversation(engine)
    for text in ("1?", "2?"):
        with pytest.raises(BackendError):
            talk.ask(text, lambda _: None)
    assert [message["content"] for message in talk.messages] == ["Be.", "1?", "half"]


# The command

type Genaid = Callable[..., Any]


def running(engine: ChatEngine) -> llm_pb2.GetLlmResponse:
    state = engines_pb2.SERVER_STATE_RUNNING
    return llm_pb2.GetLlmResponse(
        llm=llm_pb2.Llm(state=state, model_id="tiny", host="127.0.0.1", port=engine.port, pid=7)
    )


@pytest.fixture
def script(engine: ChatEngine) -> Script:
    return Script(steps={"GetLlm": [running(engine)]})


@pytest.fixture
async def address(script: Script) -> AsyncIterator[str]:
    async with serve(script) as (address, _):
        yield address


@pytest.fixture
def genaid(address: str) -> Genaid:
    """Runs a command against the scripted server."""

    async def run(*arguments: str, typed: str | bytes = "", **env: str) -> Result:
        argv = [*arguments[:1], "--resource", address, *arguments[1:]]
        return await asyncio.to_thread(CliRunner().invoke, app, argv, input=typed, env=env)

    return run


async def test_one_answer(genaid: Genaid, engine: ChatEngine, script: Script) -> None:
    engine.answers.append(said("It is ", "\x1b[2J7.", timings=TIMINGS))
    result = await genaid("chat", "--system", "Be.", "--max-tokens", "9", "--temperature", "0", "how many?")
    assert (result.exit_code, result.stdout) == (0, "It is \\x1b[2J7.\n")
    assert result.stderr == "12 tokens, 34.6 tokens/s\n"
    assert engine.requests == [
        {
            "model": "tiny",
            "max_tokens": 9,
            "temperature": 0.0,
            "messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": "how many?"}],
            "stream": True,
        }
    ]
    assert {name for name, _ in script.requests} <= {"GetLlm", "WatchLlm"}


async def test_one_answer_as_json(genaid: Genaid, engine: ChatEngine) -> None:
    thought = chunk({"reasoning_content": "hm\x1b"})
    engine.answers.append(said("7", "!", timings=TIMINGS).replace(OK, OK + thought))
    result = await genaid("chat", "--json", "how many?")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "model_id": "tiny",
        "content": "7!",
        "reasoning": "hm\x1b",
        "finish_reason": "stop",
        "tokens": 12,
        "tokens_per_second": 34.56,
        "timings": TIMINGS,
    }


@pytest.mark.parametrize("key", ["from the environment", "from a file"])
async def test_a_key_comes_from_a_file_or_the_environment(
    genaid: Genaid, engine: ChatEngine, tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    file = tmp_path_factory.mktemp("keys") / "key"
    file.write_text("s3cret\n")
    engine.answers.append(said("x"))
    options, env = (["--api-key-file", str(file)], {}) if "file" in key else ([], {"GENAID_LLM_API_KEY": "s3cret"})
    result = await genaid("chat", "hi", *options, **env)
    assert result.exit_code == 0, result.output
    assert engine.headers[0]["authorization"] == "Bearer s3cret"
    assert "s3cret" not in result.output


async def test_the_prompt_comes_from_a_pipe(genaid: Genaid, engine: ChatEngine) -> None:
    engine.answers.append(said("x"))
    result = await genaid("chat", "-", typed="\ufeffgrüße\nhi\r\n".encode())
    assert result.exit_code == 0, result.output
    assert engine.requests[0]["messages"] == [{"role": "user", "content": "grüße\nhi"}]


@pytest.mark.parametrize(
    ("arguments", "typed", "status", "words"),
    [
        (["-"], b"\xff", 2, "not UTF-8"),
        (["-"], b" \n", 1, "The prompt is empty"),
        ([""], b"", 1, "The prompt is empty"),
        (["--json"], b"", 2, "give a PROMPT"),
        (["x", "--max-tokens", "0"], b"", 2, "--max-tokens"),
        (["x", "--temperature", "-1"], b"", 2, "--temperature"),
        (["x", "--api-key-file", "no/such/file"], b"", 2, "does not exist"),
    ],
)
async def test_wrong_usage_asks_nobody(
    genaid: Genaid, engine: ChatEngine, script: Script, arguments: list[str], typed: bytes, status: int, words: str
) -> None:
    result = await genaid("chat", *arguments, typed=typed)
    assert result.exit_code == status
    assert words in " ".join(result.stderr.split())
    assert (engine.requests, script.requests) == ([], [])


async def test_what_the_engine_refuses_is_an_error(genaid: Genaid, engine: ChatEngine) -> None:
    engine.answers += [refused(400, b'{"error": {"message": "no \\u001b[2J"}}')] * 2
    result = await genaid("chat", "hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: The LLM engine refused to answer: no \\x1b[2J [INVALID_REQUEST]\n"
    failure = json.loads((await genaid("chat", "--json", "hi")).stderr)
    assert failure["error"]["code"] == "INVALID_REQUEST"


async def test_an_answer_that_breaks_off_ends_its_line(genaid: Genaid, engine: ChatEngine) -> None:
    engine.answers.append(OK + chunk({"content": "half"}))
    result = await genaid("chat", "hi")
    assert (result.exit_code, result.stdout) == (1, "half\n")
    assert "[BACKEND_ERROR]" in result.stderr


@pytest.mark.parametrize("end", ["/exit\nnever\n", ""])
async def test_a_conversation_line_by_line(genaid: Genaid, engine: ChatEngine, end: str) -> None:
    engine.answers += [said("one"), said("two\n")]
    result = await genaid("chat", typed=f"1?\n\n  \n2?\n{end}")
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    assert "tiny" in result.stderr
    assert [message["content"] for message in engine.requests[1]["messages"]] == ["1?", "one", "2?"]
    assert len(engine.requests) == 2


async def test_an_error_ends_a_conversation_from_a_pipe(genaid: Genaid, engine: ChatEngine) -> None:
    engine.answers.append(refused(400, b'{"error": {"message": "no"}}'))
    result = await genaid("chat", typed="1?\n2?\n")
    assert result.exit_code == 1
    assert len(engine.requests) == 1


async def test_an_engine_that_was_stopped_meanwhile(genaid: Genaid, script: Script) -> None:
    script.steps["GetLlm"] = [
        llm_pb2.GetLlmResponse(llm=llm_pb2.Llm(state=engines_pb2.SERVER_STATE_RUNNING, model_id="tiny"))
    ]
    result = await genaid("chat", "hi")
    assert result.exit_code == 1
    assert "genaid llm start" in result.stderr


# Ctrl-C, and a terminal


@contextmanager
def process(address: str, *arguments: str, **streams: Any) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [*GENAID, "chat", "--resource", address, *arguments]
    pipe = subprocess.PIPE
    streams = {"stdin": pipe, "stdout": pipe, "stderr": pipe, **streams}
    with subprocess.Popen(argv, env=clean_environment(), **streams) as process:
        try:
            yield process
        finally:
            kill_tree(process)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")
@pytest.mark.parametrize("arguments", [["hi"], ["hi", "--json"]])
async def test_ctrl_c_stops_an_answer_that_does_not_come(
    address: str, engine: ChatEngine, arguments: list[str]
) -> None:
    engine.answers.append(HOLD)
    with process(address, *arguments) as chat:
        assert await asyncio.to_thread(engine.held.wait, PATIENCE)
        chat.send_signal(signal.SIGINT)
        stdout, stderr = await asyncio.to_thread(chat.communicate, timeout=PATIENCE)
    assert (chat.returncode, stdout) == (130, b"")
    assert b"Traceback" not in stderr
    assert await asyncio.to_thread(engine.left.wait, PATIENCE)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")
async def test_ctrl_c_stops_an_answer_in_the_middle(address: str, engine: ChatEngine) -> None:
    engine.answers.append(OK + chunk({"content": "half"}) + HOLD)
    with process(address, "hi") as chat:
        assert chat.stdout is not None
        assert await asyncio.to_thread(chat.stdout.read, 4) == b"half"
        chat.send_signal(signal.SIGINT)
        stdout, stderr = await asyncio.to_thread(chat.communicate, timeout=PATIENCE)
    assert (chat.returncode, stdout, stderr) == (130, b"\n", b"Stopped.\n")
    assert await asyncio.to_thread(engine.left.wait, PATIENCE)


def read_until(terminal: int, done: Callable[[bytes], bool]) -> bytes:
    """What a terminal shows until that is enough."""
    seen = b""
    while not done(seen):
        assert select.select([terminal], [], [], PATIENCE)[0], seen
        seen += os.read(terminal, 65536)
    return seen


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudoterminals")
async def test_a_conversation_on_a_terminal_outlives_ctrl_c_and_errors(address: str, engine: ChatEngine) -> None:
    engine.answers += [HOLD, refused(400, b'{"error": {"message": "no"}}'), said("t", "wo")]
    ours, theirs = os.openpty()
    try:
        with process(address, stdin=theirs, stdout=theirs) as chat:
            assert chat.stderr is not None
            os.write(ours, b"1?\n")
            assert await asyncio.to_thread(engine.held.wait, PATIENCE)
            chat.send_signal(signal.SIGINT)
            seen = await asyncio.to_thread(chat.stderr.readline) + await asyncio.to_thread(chat.stderr.readline)
            assert b"Stopped." in seen
            os.write(ours, b"2?\n")
            assert b"no [INVALID_REQUEST]" in await asyncio.to_thread(chat.stderr.readline)
            os.write(ours, b"3?\n")
            assert b"2 tokens" in await asyncio.to_thread(chat.stderr.readline)
            # Until it asks again, Ctrl-D means nothing: the terminal is not yet set to read lines.
            await asyncio.to_thread(read_until, ours, lambda seen: b"> " in seen.partition(b"two\r\n")[2])
            os.write(ours, b"\x04")
            assert await asyncio.to_thread(chat.wait, PATIENCE) == 0
    finally:
        os.close(ours)
        os.close(theirs)
    assert [request["messages"][-1]["content"] for request in engine.requests] == ["1?", "2?", "3?"]
    assert len(engine.requests[-1]["messages"]) == 1
