"""LangChain's integration of Ollama, unchanged, against a running daemon with the built-in model."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import ollama
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from pydantic import BaseModel, Field

from tests.e2e.conftest import Daemon

pytestmark = pytest.mark.e2e

# Nothing in LangChain closes a connection that is kept for the next request.
CLIENT = {"limits": httpx.Limits(max_keepalive_connections=0)}
STORY = "Tell me a story about a fox."


@tool
def get_weather(city: str) -> str:
    """Weather of a city"""
    return f"18 degrees and sunny in {city}"


def chat_model(daemon: Daemon, model: str, **more: Any) -> ChatOllama:
    options = {"temperature": 0, "num_predict": 30, **more}
    return ChatOllama(
        model=model, base_url=daemon.base_url, validate_model_on_init=True, client_kwargs=CLIENT, **options
    )


def test_invoke_and_stream(daemon: Daemon, tale: str) -> None:
    model = chat_model(daemon, tale, reasoning=False)
    messages = [SystemMessage("Be brief."), HumanMessage(STORY)]
    whole = model.invoke(messages)
    pieces = list(model.stream(messages))
    assert whole.content
    assert "".join(str(piece.content) for piece in pieces) == whole.content
    assert whole.response_metadata["done_reason"] == "length"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 30
    assert sum(pieces[1:], pieces[0]).response_metadata["model"] == tale


def test_a_chain_and_a_conversation(daemon: Daemon, tale: str) -> None:
    model = chat_model(daemon, tale, reasoning=False)
    prompt = ChatPromptTemplate([("system", "You tell stories."), ("human", "Tell me a story about a {animal}.")])
    told = (prompt | model | StrOutputParser()).invoke({"animal": "bear"})
    assert "bear" in told.lower()
    more = model.invoke([HumanMessage(STORY), AIMessage(told), HumanMessage("What is 2 + 3?")])
    assert more.content


def test_reasoning(daemon: Daemon, tale: str) -> None:
    message = chat_model(daemon, tale, reasoning=True, num_predict=100).invoke("What is 2 + 3?")
    assert message.additional_kwargs["reasoning_content"]
    assert "<think>" not in message.content


def test_tools_and_their_results(daemon: Daemon, tale: str) -> None:
    model = chat_model(daemon, tale, reasoning=False, num_predict=200).bind_tools([get_weather])
    question = HumanMessage("What is the weather in Paris?")
    answer = model.invoke([question])
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    last = model.invoke([question, answer, result])
    assert last.content
    assert not last.tool_calls


def test_async_and_many_at_once(daemon: Daemon, tale: str) -> None:
    async def run() -> list[Any]:
        model = chat_model(daemon, tale, reasoning=False, num_predict=10)
        return await model.abatch([f"Tell me a story about a {animal}." for animal in ("fox", "bear", "cat", "dog")])

    assert all(message.content for message in asyncio.run(run()))


def test_plain_completion(daemon: Daemon, tale: str) -> None:
    options = {"temperature": 0, "num_predict": 20, "reasoning": False}
    model = OllamaLLM(model=tale, base_url=daemon.base_url, client_kwargs=CLIENT, **options)
    assert "".join(model.stream("Once upon a time")) == model.invoke("Once upon a time") != ""


def test_a_model_that_is_not_there(daemon: Daemon) -> None:
    with pytest.raises(ValueError, match="no-such"):
        chat_model(daemon, "no-such")
    with pytest.raises(ollama.ResponseError, match="model 'no-such' not found"):
        ChatOllama(model="no-such", base_url=daemon.base_url, client_kwargs=CLIENT).invoke(STORY)


class Animal(BaseModel):
    """An animal of a story."""

    name: str = Field(max_length=20)
    legs: int = Field(ge=0, le=8)


def test_structured_output(daemon: Daemon, tale: str) -> None:
    model = chat_model(daemon, tale, reasoning=False, num_predict=200).with_structured_output(Animal)
    assert isinstance(model.invoke("Name an animal."), Animal)


def test_embeddings(daemon: Daemon, tale: str) -> None:
    embeddings = OllamaEmbeddings(model=tale, base_url=daemon.base_url, client_kwargs=CLIENT)
    first, second = embeddings.embed_documents(["a fox", "a bear"])
    assert len(first) == len(second)
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-5)
    assert embeddings.embed_query("a fox") == pytest.approx(first, abs=1e-5)
