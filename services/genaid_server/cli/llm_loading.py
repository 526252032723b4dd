"""Starting the LLM engine and waiting until it answers; it is the server's, and goes on loading without us."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from pathlib import Path
from typing import Final

import typer

from genaid_client import (
    AsyncClient,
    Client,
    EngineEvent,
    GenaidError,
    InvalidRequestError,
    Llm,
    LlmServing,
    Model,
    ModelNotFoundError,
    ModelType,
    ServerBusyError,
    ServerError,
    ServerState,
)
from genaid_server.cli.connect import API_KEY
from genaid_server.cli.output import INTERRUPTED, printable, say
from genaid_server.cli.views.llm import last_error, state_in_words
from genaid_server.cli.views.progress import ShowWork, work_bar

MAX_KEY_FILE: Final = 4096  # bytes; a key has at most 256 characters
LOADING: Final = "loading the model"
OFFLOADED: Final = "The LLM makes room for another engine, and comes back by itself; waiting for it. Ctrl-C gives up."

type Act = Callable[[AsyncClient], Awaitable[Llm]]
type Tell = Callable[[str], None]


def read_api_key(file: Path | None) -> str:
    """The key of the engine's HTTP API: what the file holds, or the environment; empty for none.

    Raises InvalidRequestError for what is no key, OSError for a file that can't be read.
    """
    if file is None:
        key, place = os.environ.get(API_KEY, ""), API_KEY
    else:
        with file.open("rb") as opened:
            key, place = opened.read(MAX_KEY_FILE).decode("utf-8-sig", "replace").strip(), str(file)
    if (file is not None and not key) or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequestError(f"{place} holds no valid key: a key is printable ASCII without spaces.")
    return key


def load(address: str, act: Act) -> Llm:
    """Do what loads a model, on the resource manager at `address`, and show how far it is.

    Ctrl-C leaves it loading, says so, and ends the command. Raises what `act` raises.
    """
    try:
        return asyncio.run(_shown(address, act))
    except KeyboardInterrupt:
        _say_what_goes_on(address)
        raise typer.Exit(INTERRUPTED) from None


async def _shown(address: str, act: Act) -> Llm:
    async with AsyncClient(resource=address) as client:
        following = asyncio.create_task(_follow(client))
        try:
            return await act(client)
        finally:
            following.cancel()
            await asyncio.wait([following])


async def _follow(client: AsyncClient) -> None:
    show: ShowWork | None = None  # no bar where nothing is to be loaded: it would flash up
    with suppress(GenaidError), ExitStack() as bar:  # whoever waits for the model is told the error as well
        async with aclosing(client.llm.watch()) as states:
            async for now in states:
                if now.state is ServerState.STARTING:
                    show = show or bar.enter_context(work_bar())
                    show(LOADING, now.load_percentage, printable(now.model_id))


def _say_what_goes_on(address: str) -> None:
    try:
        with Client(resource=address, timeout=2) as client:
            now = client.llm.get()
    except GenaidError as error:
        say(f"Interrupted; the state of the LLM engine is not known: {printable(error.message)}")
        return
    if now.state is ServerState.STARTING:
        say(
            f"{printable(now.model_id)} goes on loading without you.\n"
            "  see how far it is:  genaid llm status\n"
            "  stop it:            genaid llm stop"
        )
    else:
        say(f"Interrupted; the LLM engine is {state_in_words(now)}.")


async def ready_llm(client: AsyncClient, model: str | None, api_key: str, tell: Tell = say) -> Llm:
    """The engine once it answers: the one that runs, loads, comes back or has crashed, or one that is started.

    That is done with `model`, or the only language model that is installed. `tell` gets what takes longer, in words.
    Raises ServerBusyError where another one runs; ModelNotFoundError and InvalidRequestError where it is not clear
    which to start; else what `llm.start` raises.
    """
    now = await client.llm.get()
    if now.offloaded or now.state is ServerState.STARTING:
        _check_model(now, model)
        now = await _settled(client, tell)
    if now.state is ServerState.RUNNING:
        _check_model(now, model)
        return now
    if now.state is ServerState.CRASHED and model in (None, now.model_id):
        return await client.llm.restart()  # with the options that it had, which are somebody's choice
    chosen = model or only_language_model(await client.models.list(ModelType.LLM))
    return await client.llm.start(chosen, serving=LlmServing(api_key=api_key) if api_key else None)


def wait_until_back(address: str, tell: Tell) -> Llm | None:
    """The LLM once it is back, asked of the resource manager at `address`; None where it was not offloaded.

    Raises ServerError where it was given up on meanwhile.
    """
    return asyncio.run(_back(address, tell))


async def _back(address: str, tell: Tell) -> Llm | None:
    async with AsyncClient(resource=address) as client:
        now = await client.llm.get()
        return await _settled(client, tell) if now.offloaded else None


def only_language_model(models: list[Model]) -> str:
    """The id of the one that there is. Raises ModelNotFoundError and InvalidRequestError."""
    match [model.id for model in models]:
        case [only]:
            return only
        case []:
            raise ModelNotFoundError(
                "No language model is installed. Get one with: genaid pull hf:OWNER/REPO/FILE.gguf, "
                "or: genaid models import FILE"
            )
        case several:
            names = ", ".join(several[:10]) + (", ..." if len(several) > 10 else "")
            raise InvalidRequestError(f"Which of these models? Choose one with --model ID: {names}")


def _check_model(now: Llm, model: str | None) -> None:
    if model not in (None, now.model_id):
        raise ServerBusyError(
            f"The LLM engine {'comes back' if now.offloaded else 'runs'} with {now.model_id}. Leave --model out to use "
            f"that, or replace it first: genaid llm start {model} --replace"
        )


async def _settled(client: AsyncClient, tell: Tell) -> Llm:
    """The engine once it neither starts nor comes back any more. Raises ServerError where it did not load."""
    told = set()
    async with aclosing(client.llm.watch()) as states:
        async for now in states:
            if now.offloaded:
                for words in _why_it_waits(now):
                    if words not in told:
                        told.add(words)
                        tell(words)
            elif now.state is ServerState.RUNNING:
                return now
            elif now.state is not ServerState.STARTING:
                raise ServerError(now.last_error or "The LLM engine was stopped meanwhile.")
    raise ServerError("The genaid service ended while the model was loading. Start it again with `genaid up`.")


def _why_it_waits(now: Llm) -> list[str]:
    failed = now.last_event is EngineEvent.RELOAD_FAILED
    return [OFFLOADED, *([f"It can't be loaded yet: {printable(last_error(now))}"] if failed else [])]


@contextmanager
def log_below(*, as_json: bool) -> Iterator[None]:
    """Print an error that comes with lines of a log as lines: the error itself, then the log, and leave with status 1.

    With `as_json`, and where there is but one line, errors are raised as they are.
    """
    try:
        yield
    except GenaidError as error:
        first, *rest = error.message.splitlines() or [""]
        if as_json or not rest:
            raise
        say("\n".join([f"Error: {printable(first)} [{error.reason}]", *(f"  {printable(line)}" for line in rest)]))
        raise typer.Exit(1) from error
