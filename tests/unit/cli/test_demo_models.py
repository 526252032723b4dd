"""The demo models are what they say they are, and the real engines run them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest

from genaid_server.demo import models

# The engines print to stdout as they please, and an abort of theirs would end the tests: so each runs in a
# process of its own, and leaves its findings in a file.
IMAGES = """
import json, sys, zlib
from pathlib import Path
from cyllama.sd import SDContext, SDContextParams

answer, files = sys.argv[1:]
params = SDContextParams()
params.n_threads = 1
for name, path in json.loads(files).items():
    setattr(params, name, path)
context = SDContext(params)

def image(prompt, seed):
    size = dict(width=64, height=64, sample_steps=2, cfg_scale=1.0)
    pixels = context.generate(prompt=prompt, seed=seed, **size)[0].to_numpy()
    return {"shape": pixels.shape, "spread": float(pixels.std()), "crc": zlib.crc32(pixels.tobytes())}

images = {"first": image("a cat", 1), "again": image("a cat", 1)}
images |= {"other seed": image("a cat", 2), "other prompt": image("a dog", 1)}
Path(answer).write_text(json.dumps(images))
"""

TEXT = """
import json, sys
from pathlib import Path
from cyllama.llama import llama_cpp as llama

answer, path, prompt = sys.argv[1:]
llama.ggml_backend_load_all()
model = llama.LlamaModel(path, llama.LlamaModelParams())
vocab = model.get_vocab()
params = llama.LlamaContextParams()
params.n_ctx, params.n_threads = 256, 1
context = llama.LlamaContext(model, params)
prompt_tokens = vocab.tokenize(prompt, True, True)
context.decode(llama.llama_batch_get_one(prompt_tokens))
text, place = b"", len(prompt_tokens)
for place in range(place, place + 64):
    logits = context.get_logits()
    token = max(range(len(logits)), key=logits.__getitem__)
    text += vocab.token_to_bytes(token)
    context.decode(llama.llama_batch_get_one([token], place))
found = {"vocab": vocab.n_vocab, "context": model.n_ctx_train, "prompt": prompt_tokens, "text": text.decode()}
Path(answer).write_text(json.dumps(found))
"""


def run_engine(program: str, answer: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program, str(answer), *arguments],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:].decode(errors="replace")
    return json.loads(answer.read_text())


def assert_paints(images: dict[str, dict[str, Any]]) -> None:
    first = images["first"]
    assert first["shape"] == [64, 64, 3]
    assert first["spread"] > 5, "an image of one colour shows nothing"
    assert images["again"] == first
    assert len({image["crc"] for image in images.values()}) == 3, "neither seed nor prompt may be lost"


def value_of(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def shapes_of(reader: gguf.GGUFReader) -> dict[str, list[int]]:
    return {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "new"
    assert models.write_all(folder) == [folder / "llm.gguf", folder / "diffusion.gguf"]
    return folder


def test_the_folder_holds_two_models_and_nothing_else(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["diffusion.gguf", "llm.gguf"]
    assert (folder / "llm.gguf").stat().st_size < 500_000
    assert (folder / "diffusion.gguf").stat().st_size < 160_000_000


def test_the_headers_say_what_the_models_are(folder: Path) -> None:
    llm = gguf.GGUFReader(folder / "llm.gguf")
    assert value_of(llm, "general.architecture") == "llama"
    assert value_of(llm, "general.name") == "genaid demo LLM (random weights)"
    assert value_of(llm, "llama.block_count") == 2
    assert value_of(llm, "llama.context_length") == 2048
    assert value_of(llm, "llama.vocab_size") == 259
    assert len(value_of(llm, "tokenizer.ggml.tokens")) == 259
    assert len(value_of(llm, "tokenizer.ggml.scores")) == 259
    assert len(value_of(llm, "tokenizer.ggml.token_type")) == 259
    diffusion = gguf.GGUFReader(folder / "diffusion.gguf")
    assert value_of(diffusion, "general.architecture") == "flux"
    assert value_of(diffusion, "general.name") == "genaid demo diffusion (random weights)"


def test_no_tensor_has_a_type_that_an_engine_refuses(folder: Path) -> None:
    types = gguf.GGMLQuantizationType
    for name in ("llm.gguf", "diffusion.gguf"):
        used = {tensor.tensor_type for tensor in gguf.GGUFReader(folder / name).tensors}
        assert used <= {types.F32, types.F16, types.Q4_0}


def test_the_header_of_the_llm_is_what_the_caller_asks_for(tmp_path: Path) -> None:
    path = models.write_llm(tmp_path / "long.gguf", vocab=1000, context_length=64, layers=3)
    reader = gguf.GGUFReader(path)
    tokens = value_of(reader, "tokenizer.ggml.tokens")
    assert len(tokens) == len(set(tokens)) == value_of(reader, "llama.vocab_size") == 1000
    assert value_of(reader, "llama.context_length") == 64
    assert value_of(reader, "llama.block_count") == 3
    shapes = shapes_of(reader)
    assert shapes["token_embd.weight"] == shapes["output.weight"] == [64, 1000]
    assert "blk.2.ffn_down.weight" in shapes
    assert "blk.3.ffn_down.weight" not in shapes


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    first = models.write_llm(tmp_path / "first.gguf").read_bytes()
    assert models.write_llm(tmp_path / "second.gguf").read_bytes() == first
    assert models.write_llm(tmp_path / "second.gguf", context_length=4096).read_bytes() != first


@pytest.mark.parametrize("mishap", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_the_old_file_and_no_part_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mishap: BaseException
) -> None:
    path = tmp_path / "llm.gguf"
    path.write_bytes(b"old")
    write = gguf.GGUFWriter.write_tensor_data
    written: list[Any] = []

    def interrupted(file: gguf.GGUFWriter, tensor: Any) -> None:
        if len(written) == 5:
            raise mishap
        written.append(tensor)
        write(file, tensor)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", interrupted)
    with pytest.raises(type(mishap)):
        models.write_llm(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wrong", [{"vocab": 258}, {"context_length": 0}, {"layers": 0}])
def test_an_llm_that_could_not_run_is_not_written(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        models.write_llm(tmp_path / "llm.gguf", **wrong)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("width", [-32, 0, 48])
def test_a_decoder_that_could_not_run_is_not_written(tmp_path: Path, width: int) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        models.write_diffusion(tmp_path / "diffusion.gguf", decoder_width=width)
    assert not any(tmp_path.iterdir())


def test_llama_cpp_runs_the_llm(folder: Path, tmp_path: Path) -> None:
    prompt = "A cät."
    found = run_engine(TEXT, tmp_path / "answer", str(folder / "llm.gguf"), prompt)
    assert found["vocab"] == 259
    assert found["context"] == 2048
    assert found["prompt"] == [1, *(3 + byte for byte in prompt.replace(" ", "\u2581").encode())]
    assert len(found["text"]) == 64
    assert found["text"].isascii()
    assert found["text"].isprintable()
    assert len(set(found["text"])) > 5


def test_stable_diffusion_cpp_runs_the_diffusion_model(folder: Path, tmp_path: Path) -> None:
    files = {"model_path": str(folder / "diffusion.gguf")}
    assert_paints(run_engine(IMAGES, tmp_path / "answer", json.dumps(files)))


def test_the_decoder_is_as_wide_as_the_caller_asks_for(tmp_path: Path) -> None:
    path = models.write_diffusion(tmp_path / "wide.gguf", decoder_width=64)
    assert shapes_of(gguf.GGUFReader(path))["first_stage_model.decoder.norm_out.weight"] == [64]
    assert_paints(run_engine(IMAGES, tmp_path / "answer", json.dumps({"model_path": str(path)})))


def test_stable_diffusion_cpp_runs_a_model_of_several_files(tmp_path: Path) -> None:
    parts = models.write_diffusion_parts(tmp_path)
    files = {
        "diffusion_model_path": str(parts["diffusion_model"]),
        "clip_l_path": str(parts["clip_l"]),
        "taesd_path": str(parts["tae"]),
    }
    assert_paints(run_engine(IMAGES, tmp_path / "answer", json.dumps(files)))
