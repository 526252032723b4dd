"""What OpenAI's own SDK gets from the LLM engine: the real one, at its own port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import gguf
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from conftest import DemoModels
from fakes.llm_engine import ANYWHERE
from genaid_client import Llm, LlmConfig, LlmServing
from genaid_server.demo.models import write_llm
from genaid_server.gateway import main as gateway
from genaid_server.gateway.config import GatewayConfig
from genaid_server.settings import Config
from llm_service import PATIENCE, LlmService, ask, llm_service

NOWHERE = "127.0.0.1:9"
KEY = "sesame-opens-no-door-0815"
SMALL = LlmConfig(threads=1, context_size=512, parallel_requests=2)
HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "hello"}]
THOUGHT = {"grammar": 'root ::= "so, hello?</think>Hello!"'}
"""Makes sure of what a model with random weights would hardly say."""


@pytest.fixture
async def service(tmp_path: Path, demo_models: DemoModels) -> AsyncIterator[LlmService]:
    thinker = write_llm(tmp_path / "thinker.gguf", reasoning=True)
    async with llm_service(tmp_path / "data", demo_models.llm, thinker) as running:
        yield running


def sdk(llm: Llm, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{llm.base_url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)


@asynccontextmanager
async def gateway_sdk(service: LlmService) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a gateway in front of the service."""
    config = Config(gateway=GatewayConfig(listen=ANYWHERE))
    async with (
        gateway.serve(config, NOWHERE, resource=service.address) as address,
        openai.AsyncOpenAI(
            base_url=f"http://{address}/openai/v1", api_key="none", max_retries=0, timeout=PATIENCE
        ) as client,
    ):
        yield client


async def test_a_chat_whole_and_streamed(service: LlmService) -> None:
    llm = await service.client.llm.start("llm", config=SMALL)
    async with sdk(llm) as client:
        assert [model.id async for model in client.models.list()] == ["llm"]
        whole = await client.chat.completions.create(
            model="llm", messages=HELLO, max_tokens=12, temperature=0, extra_body={"cache_prompt": False}
        )
        assert (whole.model, whole.choices[0].finish_reason) == ("llm", "length")
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 12
        text = whole.choices[0].message.content
        assert text
        assert not llm.separates_reasoning
        stream = await client.chat.completions.create(
            model="llm",
            messages=HELLO,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"cache_prompt": False},
        )
        chunks = [chunk async for chunk in stream]
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == text
    assert sum(1 for delta in deltas if delta) > 2
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["length"]
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [12]


async def test_thoughts_are_separated_from_the_answer(service: LlmService) -> None:
    llm = await service.client.llm.start("thinker", config=SMALL)
    assert llm.separates_reasoning
    async with sdk(llm) as client:
        whole = await client.chat.completions.create(model="thinker", messages=HELLO, max_tokens=80, extra_body=THOUGHT)
        stream = await client.chat.completions.create(
            model="thinker", messages=HELLO, max_tokens=80, stream=True, extra_body=THOUGHT
        )
        deltas = [choice.delta async for chunk in stream for choice in chunk.choices]
        unfinished = await client.chat.completions.create(model="thinker", messages=HELLO, max_tokens=6)
    message = whole.choices[0].message
    assert message.content == "Hello!"
    assert _thought(message).strip() == "so, hello?"
    assert "".join(delta.content or "" for delta in deltas) == "Hello!"
    assert "".join(map(_thought, deltas)).strip() == "so, hello?"
    # Without the grammar it thinks until it may say no more.
    assert not unfinished.choices[0].message.content
    assert len(_thought(unfinished.choices[0].message).strip()) > 2


def _thought(part: object) -> str:
    return getattr(part, "reasoning_content", None) or ""


@pytest.mark.parametrize("pooling", [gguf.PoolingType.MEAN, gguf.PoolingType.CLS, gguf.PoolingType.LAST])
async def test_an_embedding_model_makes_vectors_of_texts(tmp_path: Path, pooling: gguf.PoolingType) -> None:
    embedder = write_llm(tmp_path / "embedder.gguf", pooling=pooling)
    longest = "a" * 1000  # bytes, which are tokens here: more than are computed together elsewhere
    async with llm_service(tmp_path / "data", embedder) as service:
        await service.client.llm.start("embedder", config=LlmConfig(threads=1, context_size=1024, parallel_requests=2))
        async with gateway_sdk(service) as client:
            found = await client.embeddings.create(model="embedder", input=["hello", "hello", "world", longest])
            alone = await client.embeddings.create(model="embedder", input="world", encoding_format="float")
            with pytest.raises(openai.APIStatusError, match=r"too large|context"):
                await client.embeddings.create(model="embedder", input=longest * 2)
    first, again, other, _ = vectors = [each.embedding for each in found.data]
    assert {len(vector) for vector in vectors} == {64}
    assert sum(value * value for value in first) == pytest.approx(1, rel=1e-3)
    assert first == pytest.approx(again, abs=1e-3)
    assert other == pytest.approx(alone.data[0].embedding, abs=1e-3)
    if pooling is not gguf.PoolingType.CLS:  # the first token of all texts is the same, and sees no other here
        assert first != pytest.approx(other, abs=1e-2)


@pytest.mark.parametrize("pooling", [None, gguf.PoolingType.NONE, gguf.PoolingType.RANK])
async def test_embeddings_of_other_models_are_refused_as_llama_server_does(
    tmp_path: Path, pooling: gguf.PoolingType | None
) -> None:
    chat = write_llm(tmp_path / "chat.gguf", pooling=pooling)
    async with llm_service(tmp_path / "data", chat) as service:
        await service.client.llm.start("chat", config=SMALL)
        async with gateway_sdk(service) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.embeddings.create(model="chat", input="hello")
    assert caught.value.status_code == 501
    assert "--embeddings" in str(caught.value)


async def test_what_the_engine_refuses_is_an_error_of_the_sdk(service: LlmService) -> None:
    llm = await service.client.llm.start("llm", config=SMALL, serving=LlmServing(api_key=KEY))
    async with sdk(llm) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="llm", messages=HELLO, max_tokens=1)
    async with sdk(llm, KEY) as client:
        assert (await client.chat.completions.create(model="llm", messages=HELLO, max_tokens=1)).choices
        with pytest.raises(openai.BadRequestError, match="context"):
            await client.completions.create(model="llm", prompt="x" * 4000, max_tokens=1)
        assert (await client.completions.create(model="llm", prompt="x", max_tokens=3)).choices[0].text


async def test_more_callers_than_slots_are_all_answered(service: LlmService) -> None:
    llm = await service.client.llm.start("llm", config=SMALL)
    async with sdk(llm) as client:
        answers = await asyncio.gather(
            *(client.completions.create(model="llm", prompt=f"caller {n}", max_tokens=5) for n in range(12))
        )
    assert [answer.usage.completion_tokens for answer in answers if answer.usage] == [5] * 12
    assert await ask(llm, "GET", "/health") == (200, {"status": "ok"})


async def test_no_web_page_may_read_its_answers(service: LlmService) -> None:
    llm = await service.client.llm.start("llm", config=SMALL)
    async with aiohttp.ClientSession(trust_env=False) as session:
        for origin, allowed in (("https://evil.example", False), ("http://localhost:3000", True)):
            async with session.get(f"{llm.base_url}/v1/models", headers={"Origin": origin}) as answer:
                assert (answer.headers.get("Access-Control-Allow-Origin") in (origin, "*")) is allowed
