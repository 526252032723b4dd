"""Runs a language model in this process until all its contexts are full, and tells what that took.

The one line on stdout is JSON: `resident_bytes` is by how much the process has grown since the engine's library was
imported. Where the system tells them apart (Linux), pages of programs and libraries don't count, whose number depends
on how their files came into the cache; those of the model do. A prompt is one byte for each token, as in the demo
model, and fills its context to the last batch.
"""

import argparse
import json
import os
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import xllamacpp

LEFT_FREE = 20  # tokens: for the beginning of text, what is generated, and to spare
GENERATED = 4


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, required=True, metavar="TOKENS", help="of each slot")
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--no-flash-attention", action="store_true")
    parser.add_argument("--embeddings", type=int, default=0, metavar="BATCH", help="as an embedding model")
    return parser.parse_args()


def start(options: argparse.Namespace) -> Any:
    kinds = xllamacpp.llama_flash_attn_type
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.n_ctx = options.context * options.slots
    params.n_parallel = options.slots
    params.kv_unified = False
    params.n_gpu_layers = 0
    params.flash_attn_type = (
        kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED if options.no_flash_attention else kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED
    )
    params.cpuparams.n_threads = 1
    params.fit_params = False
    params.ctx_shift = False
    params.cache_ram_mib = 0  # keeps no prompts besides those in the slots
    if options.embeddings:
        params.embedding = True
        params.n_batch = params.n_ubatch = options.embeddings
    params.port = 0
    params.verbosity = 0
    return xllamacpp.Server(params)


def fill(url: str, slot: int, tokens: int) -> None:
    """Fill the context of one slot. Raises where the engine evaluated fewer tokens than were sent."""
    prompt = chr(ord("a") + slot) * (tokens - LEFT_FREE)
    body = {"prompt": prompt, "n_predict": GENERATED, "id_slot": slot, "temperature": 0}
    request = urllib.request.Request(  # noqa: S310 - the engine's own address
        f"{url}/completion", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        answer = json.load(response)
    if answer["tokens_evaluated"] < len(prompt) or answer["id_slot"] != slot:
        raise RuntimeError(f"slot {answer['id_slot']} holds {answer['tokens_evaluated']} tokens, not {len(prompt)}")


def embed(url: str, tokens: int) -> None:
    """Have vectors made of texts that fill all contexts. Raises where fewer tokens were evaluated than were sent."""
    body = {"input": "a" * (tokens - LEFT_FREE)}
    request = urllib.request.Request(  # noqa: S310 - the engine's own address
        f"{url}/v1/embeddings", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        evaluated = json.load(response)["usage"]["prompt_tokens"]
    if evaluated < tokens - LEFT_FREE:
        raise RuntimeError(f"{evaluated} tokens were evaluated, not {tokens}")


def taken(model: Path) -> int:
    """Resident bytes of this process: what is its own, and what it has mapped of the model's file."""
    process = psutil.Process()
    if sys.platform != "linux":
        return process.memory_info().rss
    maps = process.memory_maps(grouped=False)
    mapped = sum(each.rss for each in maps if each.path == str(model.resolve()))
    return mapped + sum(each.anonymous for each in maps)


def main() -> None:
    options = parse()
    before = taken(options.model)
    server = start(options)
    with ThreadPoolExecutor(options.slots) as slots:
        if options.embeddings:
            list(slots.map(lambda _: embed(server.listening_address, options.context), range(options.slots)))
        else:
            list(slots.map(lambda slot: fill(server.listening_address, slot, options.context), range(options.slots)))
    print(json.dumps({"resident_bytes": taken(options.model) - before}), flush=True)
    os._exit(0)  # the engine's threads need not be waited for


if __name__ == "__main__":
    main()
