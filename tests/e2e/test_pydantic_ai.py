"""Pydantic AI, unchanged, against a running daemon: over OpenAI's API, as its models of Ollama are, and Anthropic's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.messages import ThinkingPart, ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.ollama import OllamaProvider

from tests.e2e.conftest import Daemon

pytestmark = pytest.mark.e2e

STORY = "Tell me a story about a fox."
GREEDY: Any = {"temperature": 0, "max_tokens": 40}


@asynccontextmanager
async def over_openai(base_url: str, name: str) -> AsyncGenerator[Model]:
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="any", max_retries=0) as client:
        yield OllamaModel(name, provider=OllamaProvider(openai_client=client))


@asynccontextmanager
async def over_anthropic(base_url: str, name: str) -> AsyncGenerator[Model]:
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key="any", max_retries=0) as client:
        yield AnthropicModel(name, provider=AnthropicProvider(anthropic_client=client))


Run = Callable[[Callable[[Model], Awaitable[None]]], None]


@pytest.fixture(params=[over_openai, over_anthropic])
def run(request: pytest.FixtureRequest, daemon: Daemon, tale: str) -> Run:
    """Runs a coroutine function with a model, on a loop of its own."""

    def run(use: Callable[[Model], Awaitable[None]]) -> None:
        async def main() -> None:
            async with request.param(daemon.base_url, tale) as model:
                await use(model)

        asyncio.run(main())

    return run


def test_an_answer_and_a_conversation(run: Run) -> None:
    async def use(model: Model) -> None:
        agent = Agent(model, instructions="You tell stories.", model_settings=GREEDY)
        first = await agent.run(STORY)
        assert "fox" in first.output.lower()
        assert first.usage.output_tokens
        second = await agent.run("What is 2 + 3?", message_history=first.all_messages())
        assert second.output

    run(use)


def test_a_stream(run: Run) -> None:
    async def use(model: Model) -> None:
        agent = Agent(model, model_settings=GREEDY)
        async with agent.run_stream(STORY) as result:
            pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        assert len(pieces) > 5
        assert "".join(pieces) == (await agent.run(STORY)).output

    run(use)


def test_a_tool(run: Run) -> None:
    async def use(model: Model) -> None:
        asked = []
        agent = Agent(model, model_settings=GREEDY)

        @agent.tool_plain
        def get_weather(city: str) -> str:
            """Weather of a city"""
            asked.append(city)
            return "18 degrees and sunny"

        result = await agent.run("What is the weather in Paris?")
        assert asked == ["Paris"]
        assert result.output
        parts = [part for message in result.all_messages() for part in message.parts]
        assert [part.tool_name for part in parts if isinstance(part, ToolCallPart)] == ["get_weather"]

    run(use)


def test_thoughts_over_anthropic(daemon: Daemon, tale: str) -> None:
    async def main() -> None:
        async with over_anthropic(daemon.base_url, tale) as model:
            settings: Any = {"max_tokens": 2000, "anthropic_thinking": {"type": "enabled", "budget_tokens": 1024}}
            result = await Agent(model, model_settings=settings).run("What is 2 + 3?")
            parts = [part for message in result.new_messages() for part in message.parts]
            [thought] = [part for part in parts if isinstance(part, ThinkingPart)]
            assert thought.content
            assert thought.signature
            assert "<think>" not in result.output

    asyncio.run(main())


class Animal(BaseModel):
    """An animal of a story."""

    name: str = Field(max_length=20)
    legs: int = Field(ge=0, le=8)


def test_structured_output_by_a_tool(run: Run) -> None:
    async def use(model: Model) -> None:
        result = await Agent(model, output_type=Animal, model_settings={**GREEDY, "max_tokens": 200}).run(
            "Name an animal."
        )
        assert isinstance(result.output, Animal)

    run(use)


def test_structured_output_by_a_schema(daemon: Daemon, tale: str) -> None:
    async def main() -> None:
        async with over_openai(daemon.base_url, tale) as model:
            agent = Agent(model, output_type=NativeOutput(Animal), model_settings={**GREEDY, "max_tokens": 200})
            assert isinstance((await agent.run("Name an animal.")).output, Animal)

    asyncio.run(main())
