"""Every command that a message names can be typed: it is parsed by the real command line, which then runs nothing."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from typer import BadParameter

from genaid_server.cli.main import COMMANDS, load_command

ROOT: Final = Path(__file__).parents[3]
SOURCES: Final = (ROOT / "services" / "genaid_server", ROOT / "clients" / "python" / "genaid_client")
VALUE: Final = "7"
"""What stands for a value that is filled in: a number, which every id, name, path and count may be."""
BEFORE_ADVICE: Final = ("`", "(", ": ")
"""What stands before a command, and not before prose about genaid."""
COMMAND: Final = re.compile(r"(?<![\w/.-])genaid ((?:[^`(),;:\n]|:(?=\S))+)")
WRONG_USAGE: Final[Any] = BadParameter.__base__
PLACEHOLDER: Final = re.compile(r"(?:[A-Z]+|7)\b")


def texts(source: str) -> Iterator[tuple[str, bool]]:
    """The string literals of a module, with a VALUE for what an f-string fills in, and whether each is a docstring."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values), False
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value, id(node) in alone


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """What a text says behind `genaid`, in words up to the end of the sentence, where that may be a command."""
    for found in COMMAND.finditer(text):
        sentence = re.split(r"\.(?:\s|$)", found[1])[0]
        words = sentence.split() if sentence.count('"') % 2 else shlex.split(sentence)
        if words and (words[0] in COMMANDS or text[: found.start()].endswith(BEFORE_ADVICE)):
            yield found[0].strip(), words


def problem(words: list[str], *, complete: bool = True) -> str:
    """Why the words are no command, or only part of one; empty where they are one, with or without prose behind it.

    What is not `complete` may be a command's name alone, as in a docstring.
    """
    if words[0] not in COMMANDS:
        return f"there is no command {words[0]}"
    if not complete and len(words) == 1:
        return ""
    given = [VALUE if re.fullmatch(r"[A-Z]+", word) else word for word in words[1:]]
    error = ""
    for count in range(len(given), -1, -1):
        try:
            _parse(load_command(words[0]), given[:count])
        except WRONG_USAGE as wrong:
            error = error or str(wrong) or type(wrong).__name__
        else:
            rest = given[count:]
            is_prose = not rest or not (rest[0].startswith("-") or PLACEHOLDER.match(rest[0]))
            return "" if is_prose else error
    return error


def _parse(command: Any, words: list[str]) -> None:
    context = command.make_context("genaid", list(words))
    if hasattr(command, "commands") and words:
        _, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        _parse(sub, rest)


NAMED: Final = sorted(
    {
        (path.relative_to(ROOT).as_posix(), said, tuple(words), is_docstring)
        for folder in SOURCES
        for path in sorted(folder.rglob("*.py"))
        for text, is_docstring in texts(path.read_text("utf-8"))
        for said, words in commands(text)
    }
)


@pytest.fixture(autouse=True)
def _file_with_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / VALUE).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("path", "said", "words", "is_docstring"), NAMED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_command_that_is_named_can_be_typed(path: str, said: str, words: tuple[str, ...], is_docstring: bool) -> None:
    assert problem(list(words), complete=not is_docstring) == "", f"{path} says: {said}"


def test_there_is_advice_to_check() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize(
    "text",
    [
        "Start it: genaid engine start MODEL",
        "Start it (genaid llm start --replace).",
        "Start it: genaid start-llm MODEL",
        "See `genaid llm journal`.",
        "Try genaid models list --everything",
    ],
)
def test_advice_that_nobody_can_type_is_found(text: str) -> None:
    assert [bool(problem(words)) for _, words in commands(text)] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "genaid llm logs tells why.",
        "Get one with: genaid pull hf:OWNER/REPO/FILE.gguf, or: genaid models import FILE",
        "start with more: genaid llm start MODEL --context N --replace",
        'Make one: genaid generate "a prompt" --model 7',
        "`genaid downloads`: list, show",
    ],
)
def test_advice_that_can_be_typed_is_accepted(text: str) -> None:
    found = list(commands(text))
    assert found
    assert [problem(words) for _, words in found] == [""] * len(found)
