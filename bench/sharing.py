"""What sharing memory costs: an offload and the way back, and a lease where memory is ample; and what fails."""

import concurrent.futures
import json
import random
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bench.rows import Row
from bench.serving import Serving, serving
from genaid_client import (
    Client,
    GenerationSpec,
    GenerationState,
    ImageNeed,
    LeaseState,
    Llm,
    LlmConfig,
    LlmServing,
    ServerState,
    Stage,
)
from genaid_server.demo.models import write_diffusion, write_llm

LLM, IMAGE = "sharing-llm", "sharing-image"
CONFIG = LlmConfig(context_size=2048, parallel_requests=1, threads=2)
FREE_PORT = LlmServing(port=0)
WORDS = 82
"""A prompt of about 500 tokens: the small model's tokenizer knows letters."""
SPEC = GenerationSpec("a lighthouse", width=64, height=64, steps=4, seed=1)
OFFLOADS, LEASES, CACHES = 5, 51, 3
CHATS, IMAGES = 20, 10
"""How many requests the storm has."""


def rows(folder: Path) -> Iterator[Row]:
    """The table's rows about shared memory."""
    files = {LLM: write_llm(folder / f"{LLM}.gguf"), IMAGE: write_diffusion(folder / f"{IMAGE}.gguf")}
    with _installed(files) as server, Client(resource=server.resource) as manager:
        yield Row("lease where memory is ample: asked for to granted", 1000 * _lease(manager), "ms", 10)
        limit = _scarce(manager)
    with _installed(files, limit) as server, Client(resource=server.resource) as manager:
        yield Row(
            "tokens evaluated again after an offload and reload / without saved slots",
            _evaluated_again(server, manager),
            "ratio",
            0.05,
        )
        yield Row(
            "request to first diffusion step with an offload, beyond stopping and loading",
            _offload(manager, server),
            "s",
            0.5,
        )
        yield Row(f"failed of {CHATS} chats and {IMAGES} images, memory scarce", _storm(manager, server), "requests", 0)


@contextmanager
def _installed(files: dict[str, Path], limit: int = 0) -> Iterator[Serving]:
    """`genaid up` with the models, and so many bytes of main memory to plan with, 0 for all."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "genaid.toml"
        config.write_text(f"[memory]\nram_limit_bytes = {limit}\n[image]\nqueue_depth = {IMAGES}\n", "utf-8")
        with serving(Path(folder) / "data", "--config", str(config)) as server:
            inbox = server.data_dir / "inbox"
            inbox.mkdir(exist_ok=True)
            with Client(resource=server.resource) as manager:
                for name, file in files.items():
                    (inbox / file.name).hardlink_to(file)
                    manager.models.import_(file.name, name=name)
            yield server


def _lease(manager: Client) -> float:
    """Seconds until a lease is granted; the median."""
    times = []
    for turn in range(LEASES):
        began = time.perf_counter()
        with closing(manager.orchestration.hold_lease(f"bench-{turn}", ImageNeed(IMAGE, 64, 64))) as leases:
            for lease in leases:
                if lease.state is LeaseState.GRANTED:
                    break
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _scarce(manager: Client) -> int:
    """Bytes with which each of the two engines fits and both together don't."""
    manager.llm.start(LLM, config=CONFIG, serving=FREE_PORT)
    llm = max(lease.ram_bytes for lease in manager.orchestration.list_leases().leases)
    manager.llm.stop()
    image = manager.orchestration.plan_image_generation(ImageNeed(IMAGE, 64, 64)).ram_bytes
    return int(max(llm, image) * 1.1)


def _until(manager: Client, condition: Callable[[Llm], bool]) -> Llm:
    for llm in manager.llm.watch():
        if condition(llm):
            return llm
    raise RuntimeError("the watch ended")


def _back(manager: Client) -> Llm:
    """The LLM once it is back."""
    return _until(manager, lambda llm: llm.state is ServerState.RUNNING and not llm.offloaded)


def _ask(url: str, words: int, tokens: int) -> Any:
    message = {"role": "user", "content": "genaid " * words}
    body = {"messages": [message], "max_tokens": tokens, "temperature": 0, "cache_prompt": True}
    request = urllib.request.Request(  # noqa: S310 - our own http address
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return json.load(answer)


def _evaluated_again(server: Serving, manager: Client) -> float:
    """Prompt tokens of one conversation: after an offload, divided by those after a restart, which saves nothing."""
    with_slots, without = [], []
    for _ in range(CACHES):
        llm = manager.llm.start(LLM, config=CONFIG, serving=FREE_PORT)
        assert llm.base_url is not None
        _ask(llm.base_url, WORDS, 4)
        server.draw(prompt="a lighthouse", width=64, height=64, steps=2)
        llm = _back(manager)
        assert llm.base_url is not None
        with_slots.append(_ask(llm.base_url, WORDS, 4)["timings"]["prompt_n"])
        llm = manager.llm.restart()
        assert llm.base_url is not None
        without.append(_ask(llm.base_url, WORDS, 4)["timings"]["prompt_n"])
        manager.llm.stop()
    return float(statistics.median(with_slots) / statistics.median(without))


def _offload(manager: Client, server: Serving) -> float:
    """Seconds that an offload takes besides what the engines take: the LLM to stop, the image engine to load."""
    with Client(image=server.image) as images:
        alone, stops, offloads = [], [], []
        images.engine.start(IMAGE, keep_alive_seconds=0)  # from now on it is unloaded after each image
        for _ in range(OFFLOADS):
            manager.llm.start(LLM, config=CONFIG, serving=FREE_PORT)
            began = time.perf_counter()
            manager.llm.stop()
            stops.append(time.perf_counter() - began)
            alone.append(_first_step(images))
            manager.llm.start(LLM, config=CONFIG, serving=FREE_PORT)
            offloads.append(_first_step(images))
            _back(manager)
            manager.llm.stop()
    return statistics.median(offloads) - statistics.median(alone) - statistics.median(stops)


def _first_step(client: Client) -> float:
    """Seconds from asking for an image to its first step; the engine is loaded for it."""
    for engine in client.engine.watch():
        if engine.state is ServerState.STOPPED:
            break
    began = time.perf_counter()
    took = 0.0
    with closing(client.images.stream(SPEC)) as states:
        for state in states:
            progress = getattr(state, "progress", None)
            if not took and progress is not None and progress.stage is Stage.DIFFUSION and progress.current_step:
                took = time.perf_counter() - began
    return took


def _storm(manager: Client, server: Serving) -> int:
    """How many of the requests fail that come at random."""
    manager.llm.start(LLM, config=CONFIG, serving=FREE_PORT)
    dice = random.Random(1)  # noqa: S311 - the same storm each time
    jobs = [*[_chat] * CHATS, *[_image] * IMAGES]
    dice.shuffle(jobs)
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        under_way = []
        for job in jobs:
            under_way.append(pool.submit(job, server))
            time.sleep(dice.random() * 0.5)
        return sum(1 for future in under_way if future.exception() is not None)


def _chat(server: Serving) -> None:
    answer = _ask(f"{server.http}/openai", 5, 40)
    if not answer["choices"][0]["message"]["content"]:
        raise RuntimeError("the answer is empty")


def _image(server: Serving) -> None:
    with Client(image=server.image) as client:
        generation = client.images.create(SPEC)
        for state in client.images.watch(generation.id):
            if state.state.terminal:
                if state.state is not GenerationState.COMPLETE:
                    raise RuntimeError(f"the image failed: {state.error}")
                return
    raise RuntimeError("the watch ended")
