"""What addresses and names of strangers become."""

import pytest
from yarl import URL

from fakes.hub_server import HubServer
from genaid_server.resource.config import DownloadsConfig
from genaid_server.resource.core.downloads.remote import Item, RemoteError
from genaid_server.resource.core.store.names import MAX_FILE_NAME, file_name_problem
from genaid_server.resource.remote.addresses import MAX_URL, check_url, is_loopback, next_url, shown
from genaid_server.resource.remote.sources import open_remote, safe_name

GGUF = b"GGUF" * 100


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("model.gguf", "model.gguf"),
        ("Folder/Model.Q4_K_M.GGUF", "Model.Q4_K_M.GGUF"),
        ("../../etc/model.gguf", "model.gguf"),
        ("..\\..\\windows\\model.safetensors", "model.safetensors"),
        ("C:model.gguf", "C_model.gguf"),
        ("model.gguf:stream.gguf", "model.gguf_stream.gguf"),
        ("a\nb\x00c\x7f.gguf", "a_b_c_.gguf"),
        ("fdp\u202efug.gguf", "fdp_fug.gguf"),
        ("half\udc80.gguf", "half_.gguf"),
        ('what?*<>|".gguf', "what______.gguf"),
        (" .hidden.gguf. ", "hidden.gguf"),
        ("con.gguf", "model-con.gguf"),
        ("日本語.gguf", "日本語.gguf"),
    ],
)
def test_names_become_safe(said: str, name: str) -> None:
    assert safe_name(said) == name
    assert file_name_problem(name) == ""


@pytest.mark.parametrize("letter", ["x", "語", "👻"])
def test_long_names_are_cut_and_keep_their_suffix(letter: str) -> None:
    name = safe_name(letter * 5000 + ".gguf")
    assert name.endswith(f"{letter}.gguf")
    assert len(name.encode()) <= MAX_FILE_NAME


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "pytorch_model.bin", "x/model.PTH", "model.gguf.pkl"])
def test_pickled_files_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(RemoteError, match="pickled: to load one can run any code") as caught:
        safe_name(name)
    assert caught.value.permanent


@pytest.mark.parametrize("name", ["", "..", "/", "model", "readme.md", ".gguf", "gguf"])
def test_other_files_are_refused(name: str) -> None:
    with pytest.raises(RemoteError) as caught:
        safe_name(name)
    assert caught.value.permanent


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model.gguf",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://host/model.gguf",
        "javascript:alert(1)",
        "//host/model.gguf",
        "http://",
        "http:///model.gguf",
        "http://host:0/model.gguf",
        "http://host:99999/model.gguf",
        "http://[::1/model.gguf",
        "http://host/model.gguf#part",
        "http://host/mod\nel.gguf",
        "http://host\r\nX: y/model.gguf",
        " http://host/model.gguf",
        "http://host/" + "x" * MAX_URL,
    ],
)
def test_what_is_no_address_of_a_file_is_refused(text: str) -> None:
    with pytest.raises(RemoteError) as caught:
        check_url(text)
    assert caught.value.permanent


@pytest.mark.parametrize(
    "text", ["http://host/model.gguf", "HTTPS://Host:444/a b/ü.gguf?x=%2F", "http://[::1]:80/m.gguf"]
)
def test_addresses_are_understood(text: str) -> None:
    assert check_url(text).scheme in {"http", "https"}


def test_an_address_is_shown_without_secrets() -> None:
    assert shown(URL("https://me:secret@host:444/a/model.gguf?token=secret#x")) == "https://host:444/a/model.gguf"
    assert len(shown(URL("https://host/" + "x" * 1000))) == 200


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("b?x=%2F%3d", "http://host/a/b?x=%2F%3d"),
        ("/b", "http://host/b"),
        ("//other/b", "http://other/b"),
        ("https://other/b c/ü", "https://other/b%20c/%C3%BC"),
        ("http://me:secret@other/b#part", "http://other/b"),
    ],
)
def test_redirects_lead_somewhere(location: str, target: str) -> None:
    assert str(next_url(URL("http://host/a/model.gguf"), location)) == target


@pytest.mark.parametrize("location", ["http://host/b", "//[", "file:///b", "https://host/" + "x" * MAX_URL, "a\x00b"])
def test_redirects_that_must_not_be_followed(location: str) -> None:
    with pytest.raises(RemoteError) as caught:
        next_url(URL("https://host/a"), location)
    assert caught.value.permanent


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost:8081/health",
        "http://127.0.0.1/x",
        "http://0.0.0.0/x",
        "http://[::]/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1%25eth0]/x",
    ],
)
def test_others_do_not_send_us_to_ourselves(target: str) -> None:
    with pytest.raises(RemoteError, match="redirects to this machine") as caught:
        next_url(URL("http://host.example/a"), target)
    assert caught.value.permanent
    assert next_url(URL("http://localhost/a"), target).host == URL(target).host


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost/", True),
        ("http://LOCALHOST.:80/", True),
        ("http://a.localhost/", True),
        ("http://127.1.2.3/", True),
        ("http://[::1]/", True),
        ("http://[::ffff:127.0.0.1]/", True),
        ("http://128.0.0.1/", False),
        ("http://localhost.example/", False),
        ("http://[2001:db8::1]/", False),
    ],
)
def test_loopback_is_known(url: str, loopback: bool) -> None:
    assert is_loopback(URL(url)) is loopback


@pytest.mark.parametrize(
    ("path", "faults", "name"),
    [
        ("a/model.gguf", {}, "model.gguf"),
        ("a%2F..%2Fmodel.gguf", {}, "model.gguf"),
        ("download", {"disposition": 'attachment; filename="The Model.gguf"'}, "The Model.gguf"),
        ("download", {"disposition": "attachment; filename*=UTF-8''%E6%97%A5.gguf"}, "日.gguf"),
        ("download", {"disposition": 'attachment; filename="../../x/evil.gguf"'}, "evil.gguf"),
        ("model.gguf", {"disposition": "inline"}, "model.gguf"),
        ("model.gguf", {"disposition": 'inline; filename="no suffix"'}, "model.gguf"),
        ("model.gguf", {"disposition": ';;;filename==";\\'}, "model.gguf"),
        ("model.gguf", {"disposition": "attachment; filename*=x-unknown''%ff"}, "model.gguf"),
        ("download", {"redirect": "/files/found.gguf", "redirects": 1}, "found.gguf"),
        ("first.gguf", {"redirect": "/files/found.gguf", "redirects": 1}, "first.gguf"),
        ("download", {"no_head": 405, "disposition": 'attachment; filename="got.gguf"'}, "got.gguf"),
        ("model.gguf", {"no_head": 501}, "model.gguf"),
        ("model.gguf", {"no_head": 403}, "model.gguf"),
        ("model.gguf", {"no_length": True}, "model.gguf"),
    ],
)
async def test_a_file_is_named_and_measured(path: str, faults: dict[str, object], name: str) -> None:
    server = HubServer()
    server.add_file("found.gguf", GGUF)
    file = server.add_file(path.replace("%2F", "/"), GGUF)
    file.fail(**faults)
    async with server.serving(), open_remote(DownloadsConfig()) as remote:
        resolved = await remote.resolve(Item(f"{server.url}/files/{path}"))
    assert (resolved.name, resolved.size, resolved.source.file) == (name, len(GGUF), name)


async def test_a_file_without_a_name_is_refused() -> None:
    server = HubServer()
    server.add_file("download", GGUF)
    async with server.serving(), open_remote(DownloadsConfig()) as remote:
        with pytest.raises(RemoteError, match=r"\.gguf or \.safetensors") as caught:
            await remote.resolve(Item(server.file_url("download")))
    assert caught.value.permanent
