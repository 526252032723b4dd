"""The LLM engine: llama.cpp's own HTTP server in a child process, configured by one frame on stdin.

It gets `load` and answers with `ready` or `failed` (see `resource/core/llm/process.py`, its other end). What the
library logs goes to stderr. It ends when stdin ends, whatever it does.

With the argument `devices` it tells instead, as one line of JSON, how many GPUs this build of the library can use.
"""

import json
import os
import sys
import threading
from typing import Any, BinaryIO, Final

from genaid_server.supervision import frames
from genaid_server.supervision.lifeline import die_with_parent, take_pipes

SPARE_HTTP_THREADS: Final = 16
"""HTTP threads beyond one a slot: each waiting request holds one, and health checks must still get through."""
EXPERTS_ON_CPU: Final = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"


def parameters(command: dict[str, Any]) -> Any:
    """The library's parameters for a `load` command."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = command["model"]
    params.model_alias = {command["alias"]}
    params.hostnames = [command["host"]]
    params.port = command["port"]
    params.n_parallel = command["parallel"]
    params.n_ctx = command["context_size"] * command["parallel"]  # the library divides it among the slots
    params.kv_unified = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = command["threads"]
    params.n_threads_http = command["parallel"] + SPARE_HTTP_THREADS
    params.n_gpu_layers = command["gpu_layers"]
    if command["experts_on_cpu"]:
        params.tensor_buft_overrides = EXPERTS_ON_CPU
    flash = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        flash.LLAMA_FLASH_ATTN_TYPE_ENABLED if command["flash_attention"] else flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.cache_type_k = _cache_type(command["cache_type_k"])
    params.cache_type_v = _cache_type(command["cache_type_v"])
    modes = xllamacpp.llama_load_mode
    params.load_mode = {
        (False, False): modes.LLAMA_LOAD_MODE_NONE,
        (True, False): modes.LLAMA_LOAD_MODE_MMAP,
        (False, True): modes.LLAMA_LOAD_MODE_MLOCK,
        (True, True): modes.LLAMA_LOAD_MODE_MMAP_MLOCK,
    }[command["memory_map"], command["memory_lock"]]
    params.fit_params = False  # what fits has been decided, and a context is never reduced in silence
    params.cache_ram_mib = 0  # a cache beside the slots would grow beyond what was planned with
    params.slot_save_path = command["slot_save_path"]
    params.api_keys = [command["api_key"]] if command["api_key"] else []
    params.use_jinja = True
    formats = xllamacpp.common_reasoning_format
    params.reasoning_format = (
        formats.COMMON_REASONING_FORMAT_DEEPSEEK
        if command["separates_reasoning"]
        else formats.COMMON_REASONING_FORMAT_NONE
    )
    if command["embeddings"]:
        params.embedding = True  # pooled as the model's header says
        params.n_batch = params.n_ubatch = command["batch"]
    params.cors_origins = "localhost"  # the library would let every web page read its answers
    params.cors_origins_explicit = True
    params.ui = False
    params.endpoint_slots = True
    params.endpoint_metrics = True
    return params


def _cache_type(name: str) -> Any:
    import xllamacpp

    return getattr(xllamacpp.ggml_type, f"GGML_TYPE_{name.upper()}")


def read_command(pipe: BinaryIO) -> dict[str, Any]:
    """Wait for the one frame that says what to load. Ends the process where stdin ends first."""
    reader = frames.FrameReader()
    while data := pipe.read(65536):
        for frame in reader.feed(data):
            return frame.header
    os._exit(0)


def end_with(pipe: BinaryIO) -> None:
    """End the process, whatever it does, when stdin ends."""
    while pipe.read(65536):
        pass
    os._exit(0)


def count_gpus() -> int:
    """How many devices the library finds that are not the processor."""
    import xllamacpp

    processors = {xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU}
    return sum(1 for device in xllamacpp.get_device_info() if device["type"] not in processors)


def main() -> None:
    """Load, serve, and end when told."""
    incoming, outgoing = take_pipes()
    die_with_parent()
    if sys.argv[1:] == ["devices"]:
        outgoing.write(json.dumps({"gpus": count_gpus()}).encode() + b"\n")
        return
    command = read_command(incoming)
    threading.Thread(target=end_with, args=(incoming,), daemon=True).start()
    import xllamacpp

    try:
        server = xllamacpp.Server(parameters(command))
    except (RuntimeError, ValueError, MemoryError) as error:
        outgoing.write(frames.encode({"event": "failed", "message": str(error)}))
        sys.exit(1)  # an ordinary end: the library logs in a thread of its own, and only then writes the rest
    port = int(server.listening_address.rpartition(":")[2])
    outgoing.write(frames.encode({"event": "ready", "port": port}))
    threading.Event().wait()  # until stdin ends, or a signal


if __name__ == "__main__":
    main()
