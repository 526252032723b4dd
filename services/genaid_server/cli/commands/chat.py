"""`genaid chat`: ask the language model that runs, once or in a conversation; it answers from its own port."""

import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer

from genaid_client import ConnectionFailedError, GenaidError, InvalidRequestError, Llm, ServerBusyError, ServerError
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.completions import ChatEndpoint, stream_answer
from genaid_server.cli.connect import find_server
from genaid_server.cli.llm_loading import load, log_below, read_api_key, ready_llm, wait_until_back
from genaid_server.cli.output import INTERRUPTED, print_json, printable, say
from genaid_server.cli.views.answers import AnswerWriter, ChatAnswer

app = typer.Typer(rich_markup_mode=None)

MAX_PROMPT: Final = 64 * 2**20  # bytes; more is surely no prompt
EXIT: Final = "/exit"


@dataclass
class Conversation:
    """What has been said, and how to go on: `settings` are fields of each request.

    `wait` waits for an engine that was offloaded, and tells where it is then; None where that is not why it is silent.
    """

    endpoint: ChatEndpoint
    settings: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)
    wait: Callable[[], ChatEndpoint | None] = lambda: None

    def ask(self, text: str, show: Callable[..., None]) -> ChatAnswer:
        """Say something, and hear the answer, which `show` gets part by part.

        Both are kept; where the answer breaks off, as much as there is, and without any of it neither. Raises what
        `stream_answer` and `wait` raise, and KeyboardInterrupt.
        """
        try:
            return self._ask(text, show)
        except (ConnectionFailedError, ServerBusyError):
            endpoint = self.wait()
            if endpoint is None:
                raise
        self.endpoint = endpoint
        return self._ask(text, show)

    def _ask(self, text: str, show: Callable[..., None]) -> ChatAnswer:
        answer = ChatAnswer()
        question = {"role": "user", "content": text}
        request = {**self.settings, "messages": [*self.messages, question]}
        try:
            with closing(stream_answer(self.endpoint, request)) as parts:
                for part in parts:
                    answer.add(part)
                    show(part)
        finally:
            if answer.content:  # roles must take turns, so a question without an answer can't stay
                self.messages += [question, {"role": "assistant", "content": answer.content}]
        return answer


@app.command("chat", cls=Command)
def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]",
            help="What to ask; - reads it from stdin; put -- before one that begins with a dash. "
            "Default: a conversation.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Load this model if none runs. Default: the only one for text."),
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="What the model is told first.")] = "",
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="End an answer there. Default: the end of the context.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", min=0.0, help="How freely it chooses words; 0 not at all. Default: the engine's."),
    ] = None,
    reasoning: Annotated[
        bool | None,
        typer.Option(
            "--reasoning/--no-reasoning",
            help="Show what the model thinks before it answers. Default: on a terminal.",
            show_default=False,
        ),
    ] = None,
    api_key_file: options.ApiKeyFile = None,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Talk to the LLM.

    With a prompt, the answer is printed on stdout. Without one this is a conversation: /exit or Ctrl-D ends it, Ctrl-C
    stops an answer.
    """
    if as_json and prompt is None:
        raise typer.BadParameter("It applies to one answer only: give a PROMPT.", param_hint="--json")
    text = None if prompt is None else _read_prompt(prompt)
    key = read_api_key(api_key_file)
    server = find_server(data_dir, resource=resource)
    tell = _tell_nobody if as_json else say
    with log_below(as_json=as_json):
        llm = load(server.resource, lambda client: ready_llm(client, model, key, tell))

    def wait() -> ChatEndpoint | None:
        back = wait_until_back(server.resource, tell)
        return None if back is None else _endpoint(back, key)

    conversation = Conversation(
        _endpoint(llm, key),
        settings={
            name: value
            for name, value in {"model": llm.model_id, "max_tokens": max_tokens, "temperature": temperature}.items()
            if value is not None
        },
        messages=[{"role": "system", "content": system}] if system else [],
        wait=wait,
    )
    if text is None:
        converse(conversation, llm.model_id, AnswerWriter(reasoning=reasoning))
    elif as_json:
        _answer_as_json(conversation, text, llm.model_id)
    else:
        _answer(conversation, text, AnswerWriter(reasoning=reasoning))


def _read_prompt(argument: str) -> str:
    if argument == "-":
        content = sys.stdin.buffer.read(MAX_PROMPT + 1)
        if len(content) > MAX_PROMPT:
            raise typer.BadParameter("What is on stdin is too long for a prompt.")
        try:
            argument = content.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            raise typer.BadParameter("The prompt on stdin is not UTF-8 text.") from None
    if not argument.strip():
        raise InvalidRequestError("The prompt is empty; say what to ask.")
    return argument


def _tell_nobody(_: str) -> None:
    """Programs read an error on stderr, and nothing else."""


def _endpoint(llm: Llm, key: str) -> ChatEndpoint:
    if llm.port is None:
        raise ServerError("The LLM engine has just been stopped. Start it again: genaid llm start MODEL")
    return ChatEndpoint(llm.host, llm.port, key)


def _answer(conversation: Conversation, text: str, page: AnswerWriter) -> None:
    try:
        answer = conversation.ask(text, page.write)
    except KeyboardInterrupt:
        page.end()
        say("Stopped.")
        raise typer.Exit(INTERRUPTED) from None
    except GenaidError:
        page.end()
        raise
    page.end()
    say(answer.summary())


def _answer_as_json(conversation: Conversation, text: str, model_id: str) -> None:
    try:
        answer = conversation.ask(text, lambda _: None)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    print_json(
        {
            "model_id": model_id,
            "content": answer.content,
            "reasoning": answer.reasoning,
            "finish_reason": answer.finish_reason,
            "tokens": answer.tokens,
            "tokens_per_second": answer.tokens_per_second,
            "timings": answer.timings,
        }
    )


def converse(conversation: Conversation, model_id: str, page: AnswerWriter) -> None:
    """Answer line by line until stdin ends or somebody leaves.

    On a terminal errors are said, and the conversation goes on; elsewhere they are raised.
    """
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    if prompt:
        with suppress(ImportError):  # Windows has line editing of its own
            import readline  # noqa: F401 - to import it is to use it
    say(f"This is {printable(model_id)}. {EXIT} or Ctrl-D ends the conversation, Ctrl-C stops an answer.")
    while (line := _next_line(prompt)) is not None:
        if not line.strip():
            continue
        if line.strip() == EXIT:
            return
        try:
            answer = conversation.ask(line, page.write)
        except KeyboardInterrupt:
            page.end()
            say("Stopped.")
        except GenaidError as error:
            page.end()
            if not prompt:
                raise
            say(f"Error: {printable(error.message)} [{error.reason}]")
        else:
            page.end()
            say(answer.summary())


def _next_line(prompt: str) -> str | None:
    """What is typed next; None at the end."""
    while True:
        try:
            return input(prompt)
        except KeyboardInterrupt:  # as in a shell: away with what was typed
            print()
        except EOFError:
            if prompt:
                print()
            return None
        except UnicodeDecodeError:
            raise InvalidRequestError("What was typed is not text that can be read.") from None
