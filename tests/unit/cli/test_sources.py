"""How people name what to download, and how nonsense is refused."""

from pathlib import Path

import pytest
import typer

from genaid_client import Component, DownloadItem, HuggingFaceSource
from genaid_server.cli.sources import (
    ComponentSource,
    describe_source,
    items,
    parse_checksum,
    parse_component,
    parse_source,
)

HUB = "https://huggingface.co"
SHA = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:o/n/f.gguf", HuggingFaceSource("o/n", "f.gguf")),
        ("hf:TheBloke/Llama-2-7B-GGUF/x.Q4_K_M.gguf", HuggingFaceSource("TheBloke/Llama-2-7B-GGUF", "x.Q4_K_M.gguf")),
        ("hf:o/n/a folder/b/f.gguf", HuggingFaceSource("o/n", "a folder/b/f.gguf")),
        ("hf:o/n/f.gguf@main", HuggingFaceSource("o/n", "f.gguf", "main")),
        ("hf:o/n/a/f.gguf@refs/pr/1", HuggingFaceSource("o/n", "a/f.gguf", "refs/pr/1")),
        ("hf:o/n/a@b.gguf@v1", HuggingFaceSource("o/n", "a@b.gguf", "v1")),
        ("HF:o/n/f.gguf", HuggingFaceSource("o/n", "f.gguf")),
        ("hf://o/n/f.gguf", HuggingFaceSource("o/n", "f.gguf")),
        ("  hf:o/n/f.gguf\n", HuggingFaceSource("o/n", "f.gguf")),
        (f"{HUB}/o/n/resolve/main/f.gguf", HuggingFaceSource("o/n", "f.gguf", "main")),
        (f"{HUB}/o/n/resolve/main/f.gguf?download=true", HuggingFaceSource("o/n", "f.gguf", "main")),
        (f"{HUB}/o/n/blob/{'a' * 40}/b/f.gguf#x", HuggingFaceSource("o/n", "b/f.gguf", "a" * 40)),
        (f"{HUB}/o/n/raw/v1/f%20g.gguf", HuggingFaceSource("o/n", "f g.gguf", "v1")),
        (f"{HUB}/o/n/resolve/refs%2Fpr%2F1/f.gguf", HuggingFaceSource("o/n", "f.gguf", "refs/pr/1")),
        ("http://hf.co/o/n/blob/main/f.gguf", HuggingFaceSource("o/n", "f.gguf", "main")),
        ("HTTPS://HuggingFace.co/o/n/blob/main/f.gguf", HuggingFaceSource("o/n", "f.gguf", "main")),
        ("http://127.0.0.1:8000/f.gguf", "http://127.0.0.1:8000/f.gguf"),
        ("https://example.org/a/b.gguf?c=d@e", "https://example.org/a/b.gguf?c=d@e"),
        ("https://not-huggingface.co/o/n/blob/main/f.gguf", "https://not-huggingface.co/o/n/blob/main/f.gguf"),
        ("http://[::1]:8000/f.gguf", "http://[::1]:8000/f.gguf"),
    ],
)
def test_sources(text: str, source: HuggingFaceSource | str) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        *("hf:", "hf:o", "hf:o/", "hf:o/n", "hf:o/n/", "hf:o/n/a/", "hf:/n/f", "hf:o//f.gguf", "hf:o/n//f.gguf"),
        *("hf:o/n/../f.gguf", "hf:o/n/./f.gguf", "hf:o/n/f.gguf@", "hf:@main", "hf:o/n@main"),
    ],
)
def test_what_is_no_file_on_the_hub_is_told_the_form_and_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter) as raised:
        parse_source(text)
    assert repr(text) in raised.value.message
    assert "hf:OWNER/REPO/FILE@REVISION" in raised.value.message
    assert "hf:TheBloke/Llama-2-7B-GGUF/llama-2-7b.Q4_K_M.gguf" in raised.value.message


@pytest.mark.parametrize("text", ["", "llama", "TheBloke/Llama", "ftp://example.org/x", "file:///etc/passwd", "C:\\x"])
def test_nonsense_is_told_both_forms(text: str) -> None:
    with pytest.raises(typer.BadParameter) as raised:
        parse_source(text)
    for part in ("hf:OWNER/REPO/FILE", "hf:TheBloke/", "http(s) address"):
        assert part in raised.value.message


def test_a_file_of_this_machine_is_imported_instead(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(typer.BadParameter, match="genaid models import"):
        parse_source(str(file))


@pytest.mark.parametrize("text", ["http:", "http://", "https:///x.gguf", "http://a b/x", "http://[::1/x", "http:x"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"is no http\(s\) address"):
        parse_source(text)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/o/n",
        "/o/n/tree/main",
        "/o/n/blob/main",
        "/o/n/blob/main/",
        "/o/n/blob/main//f",
        "/o/n/commits/main/f",
    ],
)
def test_a_page_of_the_hub_is_no_file(path: str) -> None:
    with pytest.raises(typer.BadParameter, match="is a page of the hub, not a file"):
        parse_source(HUB + path)


@pytest.mark.parametrize(
    ("text", "component"),
    [
        ("vae=hf:o/n/f", ComponentSource(Component.VAE, HuggingFaceSource("o/n", "f"))),
        ("CLIP-L=http://127.0.0.1/a=b", ComponentSource(Component.CLIP_L, "http://127.0.0.1/a=b")),
    ],
)
def test_components(text: str, component: ComponentSource) -> None:
    assert parse_component(text) == component


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("vae", "is not ROLE=SOURCE"),
        ("=hf:o/n/f", "'' is not one of diffusion_model, clip_l, clip_g, t5xxl, llm, vae, tae"),
        ("brain=hf:o/n/f", "'brain' is not one of"),
        ("vae=x", "'x' names nothing to download"),
    ],
)
def test_components_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(typer.BadParameter) as raised:
        parse_component(text)
    assert complaint in raised.value.message


def test_checksums() -> None:
    assert parse_checksum(f" SHA256:{SHA.upper()}") == f"sha256:{SHA}"
    for wrong in ("", SHA, f"sha256:{SHA[1:]}", f"sha256:{SHA}0", f"md5:{SHA}", f"sha256:{SHA[1:]}g"):
        with pytest.raises(typer.BadParameter, match="64 hexadecimal digits"):
            parse_checksum(wrong)


def test_what_is_fetched() -> None:
    hub, vae = HuggingFaceSource("o/n", "f"), ComponentSource(Component.VAE, "http://127.0.0.1/vae")
    assert items(hub, [], "sha256:0") == (DownloadItem(hub, checksum="sha256:0"),)
    assert items(hub, [vae], "sha256:0") == (
        DownloadItem(hub, Component.DIFFUSION_MODEL, "sha256:0"),
        DownloadItem("http://127.0.0.1/vae", Component.VAE),
    )


@pytest.mark.parametrize("role", [Component.VAE, Component.DIFFUSION_MODEL])
def test_no_component_has_two_files(role: Component) -> None:
    parts = [ComponentSource(role, "http://127.0.0.1/a"), ComponentSource(Component.VAE, "http://127.0.0.1/b")]
    with pytest.raises(typer.BadParameter, match=f"{role} is given twice"):
        items("http://127.0.0.1/c", parts, "")


def test_sources_are_described_as_they_are_written() -> None:
    for text in ("hf:o/n/a/f.gguf", "hf:o/n/f.gguf@v1", "http://127.0.0.1/x"):
        assert describe_source(parse_source(text)) == text
    assert "doesn't know" in describe_source(None)
