"""Models made of several files, and where a store's tests put them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from genaid_server.resource.core.formats.gguf import ValueType
from genaid_server.resource.core.store.model import Component, ModelSource, SourceType, StagedFile
from genaid_server.resource.core.store.store import ModelStore
from unit.formats.gguf_files import diffusion_model, model, pair, u64

REMOTE = ModelSource(
    SourceType.HUGGINGFACE,
    url="http://hub.test/o/n/resolve/main/f",
    repo="o/n",
    file="f",
    revision="0" * 40,
    etag='"e"',
    license="apache-2.0",
)


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def safetensors(names: tuple[str, ...] = ("weight",), title: str = "", salt: int = 0) -> bytes:
    header: dict[str, object] = {"__metadata__": {"modelspec.title": title, "salt": str(salt)}}
    header |= {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    text = json.dumps(header).encode()
    return u64(len(text)) + text + bytes(4 * len(names))


def shards(count: int, *, name: str = "Split Llama", salt: int = 0) -> list[bytes]:
    """The files of a language model in shards; only the first knows what it is, and it has no tensors."""
    files = []
    for number in range(count):
        pairs = [
            pair("split.no", ValueType.UINT16, number),
            pair("split.count", ValueType.UINT16, count),
            pair("test.salt", ValueType.UINT32, salt),
        ]
        if number == 0:
            pairs += [
                pair("general.architecture", ValueType.STRING, "llama"),
                pair("general.name", ValueType.STRING, name),
                pair("llama.block_count", ValueType.UINT32, count),
                pair("tokenizer.ggml.model", ValueType.STRING, "gpt2"),
            ]
        files.append(model(pairs, [(f"blk.{number - 1}.attn_q.weight", (8, 8))] if number else []))
    return files


def shard_names(count: int, base: str = "Split") -> list[str]:
    return [f"{base}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


@dataclass
class Staging:
    """A folder beside the store in which files wait to be installed."""

    store: ModelStore
    number: int = 0

    def file(self, name: str, content: bytes, component: Component = Component.MODEL, shard: int = 0) -> StagedFile:
        self.number += 1
        path = self.store.inbox.parent / "downloads" / str(self.number) / "partial"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return StagedFile(path, name, sha256(content), REMOTE, component, shard)

    def shards(self, contents: list[bytes], base: str = "Split") -> list[StagedFile]:
        names = shard_names(len(contents), base)
        return [
            self.file(name, content, shard=number)
            for number, (name, content) in enumerate(zip(names, contents, strict=True), 1)
        ]

    def components(self, contents: Mapping[Component, bytes], suffix: str = "safetensors") -> list[StagedFile]:
        """One file a component; what the store has already is shared, as a download does it."""
        staged = []
        for component, content in contents.items():
            name = f"{component}.gguf" if content.startswith(b"GGUF") else f"{component}.{suffix}"
            if known := self.store.file_with(sha256(content)):
                staged.append(StagedFile(known.path, name, known.checksum, REMOTE, component))
            else:
                staged.append(self.file(name, content, component))
        return staged


FLUX: dict[Component, bytes] = {
    Component.DIFFUSION_MODEL: diffusion_model("Tiny Flux"),
    Component.CLIP_L: safetensors(("text_model.weight",)),
    Component.T5XXL: model([pair("general.architecture", ValueType.STRING, "t5encoder")], [("enc.weight", (4,))]),
    Component.VAE: safetensors(("decoder.weight",)),
}
"""A diffusion model of components."""


def names_below(store: ModelStore) -> set[str]:
    """Every file in the folders of the models."""
    models = store.inbox.parent / "models"
    return {path.relative_to(models).as_posix() for path in models.rglob("*") if not path.is_dir()}


def expected_names(store: ModelStore) -> set[str]:
    """What should be there: the files and records of the store's models, and nothing else."""
    models = store.inbox.parent / "models"
    files = {file.path.relative_to(models).as_posix() for each in store.list() for file in each.files}
    return files | {f"{each.type}/{each.id}.json" for each in store.list()}
