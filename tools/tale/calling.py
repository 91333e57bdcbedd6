"""Functions as JSON schemas, requests that need one of them, the right call, a result, and the answer from it.

Two kinds of functions: a dozen domains that users expect (weather, timers, messages ...), worded in several ways, and
random ones ("get the height of a mountain") whose names, parameters and descriptions are put together anew each time, so
that the model must read the schema.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools.tale import vocabulary as words
from tools.tale.grammar import capital, expand, with_article
from tools.tale.recall import number, thing_word
from tools.tale.stories import any_name as name
from tools.tale.stories import made_up_word

Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One function, one request that needs it, and how it goes on."""

    tool: Json
    request: str
    arguments: Json
    result: str
    answer: str
    again: tuple[str, Json, str, str] | None = field(default=None)  # a second request: text, arguments, result, answer

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.tool["function"]["name"])


def _tool(
    rng: random.Random,
    function_name: str,
    description: str,
    parameters: dict[str, tuple[str, str]],
    required: list[str] | None = None,
    enums: dict[str, list[str]] | None = None,
) -> Json:
    """A tool as OpenAI's API describes it; parameters: name -> (type, description)."""
    properties: Json = {}
    for key, (kind, text) in parameters.items():
        properties[key] = {"type": kind}
        if text and rng.random() < 0.8:
            properties[key]["description"] = text
        if enums and key in enums:
            properties[key]["enum"] = enums[key]
    schema: Json = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        schema["required"] = list(parameters) if required is None else required
    function: Json = {"name": function_name, "parameters": schema}
    if rng.random() < 0.93:
        function["description"] = description
    return _ordered(rng, {"type": "function", "function": function})


_ORDERS = (
    ("type", "function", "name", "description", "parameters", "properties", "required", "enum"),
    ("type", "function", "name", "description", "parameters", "required", "properties", "enum"),
    ("description", "enum", "function", "name", "parameters", "properties", "required", "type"),
)


def _ordered(rng: random.Random, tool: Json) -> Json:
    """The same tool with its keys as OpenAI's examples, Ollama, or a sorting serializer would write them."""
    order = rng.choice((_ORDERS[0], _ORDERS[0], _ORDERS[1], _ORDERS[2]))

    def sort(value: Any, schema: bool = True) -> Any:
        if not isinstance(value, dict):
            return value
        keys = sorted(value, key=order.index) if schema else list(value)
        return {key: sort(value[key], schema=not (schema and key == "properties")) for key in keys}

    sorted_tool: Json = sort(tool)
    return sorted_tool


def _cased(rng: random.Random, *parts: str) -> str:
    """A function name: get_weather, getWeather, get-weather is not allowed everywhere and left out."""
    plain = [part for part in "_".join(parts).replace(" ", "_").split("_") if part]
    if rng.random() < 0.15:
        return plain[0] + "".join(capital(part) for part in plain[1:])
    return "_".join(plain)


def _weather(rng: random.Random) -> Call:
    city_key = rng.choice(("city", "city", "city", "location", "location", "place"))
    function = rng.choice(
        (
            "get_weather",
            "get_weather",
            "get_current_weather",
            "get_current_weather",
            "weather",
            "getWeather",
            "get_forecast",
            "lookup_weather",
            "get_temperature",
        )
    )
    wants_unit = rng.random() < 0.3
    parameters = {
        city_key: (
            "string",
            rng.choice(
                ("The city", "The name of the city", "The city to look up", "The location", "The city, e.g. Paris")
            ),
        )
    }
    unit_key = rng.choice(("unit", "format"))
    unit = rng.choice(("celsius", "fahrenheit"))
    if wants_unit:
        parameters[unit_key] = ("string", rng.choice(("The unit of temperature", "celsius or fahrenheit")))
    tool = _tool(
        rng,
        function,
        rng.choice(
            (
                "Get the current weather for a city",
                "Get the weather",
                "Returns the weather in a city.",
                "Look up the weather of a place",
                "Get the current temperature for a city",
            )
        ),
        parameters,
        [city_key],
        {unit_key: ["celsius", "fahrenheit"]},
    )

    def turn() -> tuple[str, Json, str, str]:
        city = capital(made_up_word(rng)) if rng.random() < 0.1 else rng.choice(words.CITIES)
        if rng.random() < 0.08:
            city += ", " + rng.choice(words.REGIONS)
        degrees = rng.randint(-10, 39)
        sky = rng.choice(words.WEATHERS)
        arguments: Json = {city_key: city}
        request = expand(
            "[What is the weather in {v}?|What is the weather like in {v}?|How is the weather in {v}?|Weather in {v}?|What's the weather in {v} today?|Tell me the weather in {v}.|What is the temperature in {v}?|How warm is it in {v}?|Is it raining in {v}?]",
            {"v": city},
            rng,
        )
        if wants_unit and rng.random() < 0.7:
            arguments[unit_key] = unit
            request = request.rstrip("?.") + f" in {unit}" + ("?" if "?" in request else ".")
        form = rng.random()
        if form < 0.4:
            result = json.dumps(
                {rng.choice(("temperature", "temp")): degrees, rng.choice(("condition", "weather", "sky")): sky}
            )
            answer = f"It is {sky} and {degrees} degrees in {city}."
        elif form < 0.6:
            result, answer = f"{degrees} degrees and {sky}", f"It is {sky} and {degrees} degrees in {city}."
        elif form < 0.75:
            result = rng.choice(
                (
                    f"{degrees} degrees",
                    f"{degrees}",
                    json.dumps({"temperature": degrees}),
                    json.dumps({"temperature": str(degrees)}),
                )
            )
            answer = f"It is {degrees} degrees in {city}."
        elif form < 0.9:
            result = rng.choice((sky, json.dumps({"weather": sky}), capital(sky)))
            answer = f"It is {sky} in {city}."
        else:
            result = rng.choice((f"{sky}, {degrees} degrees", f"{capital(sky)}, {degrees}°C", f"{degrees}°C, {sky}"))
            answer = f"It is {sky} and {degrees} degrees in {city}."
        return request, arguments, result, answer

    request, arguments, result, answer = turn()
    return Call(tool, request, arguments, result, answer, turn())


def _timer(rng: random.Random) -> Call:
    unit = rng.choice(("minutes", "seconds", "hours"))
    amount = rng.randint(1, 90)
    key = rng.choice((unit, "duration", unit))
    tool = _tool(
        rng,
        rng.choice(("set_timer", "start_timer", "create_timer", "setTimer")),
        rng.choice(("Set a timer", "Start a timer.", f"Set a timer for a number of {unit}")),
        {key: (rng.choice(("integer", "number")), f"The {unit} to wait")},
    )
    request = expand(
        "[Set a timer for {n} {u}.|Please set a timer for {n} {u}.|Start a timer of {n} {u}.|Timer for {n} {u}, please.|Wake me in {n} {u}.]",
        {"n": str(amount), "u": unit},
        rng,
    )
    result = rng.choice(("ok", "done", '{"status": "ok"}', '{"success": true}', "Timer started"))
    return Call(tool, request, {key: amount}, result, f"The timer is set for {amount} {unit}.")


def _message(rng: random.Random) -> Call:
    to, text = rng.choice((("to", "text"), ("recipient", "message"), ("name", "body"), ("to", "message")))
    person, message = (
        name(rng),
        expand(
            "[I am late|come home|the {t} is ready|happy birthday|see you on {d}|dinner is at {n}|bring the {t}|I found the {t}|good night]",
            {"t": rng.choice(words.THINGS), "d": rng.choice(words.WEEKDAYS), "n": str(rng.randint(1, 12))},
            rng,
        ),
    )
    tool = _tool(
        rng,
        rng.choice(("send_message", "send_email", "send_text", "sendMessage", "write_message")),
        rng.choice(("Send a message to a person", "Sends a message.", "Send a text to somebody")),
        {to: ("string", "Who gets the message"), text: ("string", "The text to send")},
    )
    request = expand(
        "[Send {n} the message: {m}|Tell {n}: {m}|Write to {n}: {m}|Send a message to {n}: {m}|Please send {n} this message: {m}]",
        {"n": person, "m": message},
        rng,
    )
    return Call(
        tool,
        request,
        {to: person, text: message},
        rng.choice(("ok", "sent", '{"status": "sent"}', "Message sent")),
        f"I have sent the message to {person}.",
    )


def _arithmetic(rng: random.Random) -> Call:
    function, verb, description = rng.choice((
        ("add", "[What is {a} plus {b}?|Add {a} and {b}.|What is {a} + {b}?|Please add {a} and {b}.]", "Add two numbers"),
        ("multiply", "[What is {a} times {b}?|Multiply {a} by {b}.|What is {a} * {b}?]", "Multiply two numbers"),
        ("subtract", "[What is {a} minus {b}?|Subtract {b} from {a}.|What is {a} - {b}?]", "Subtract the second number from the first"),
        ("divide", "[What is {a} divided by {b}?|Divide {a} by {b}.]", "Divide the first number by the second"),
    ))  # fmt: skip
    a, b = rng.randrange(10 ** rng.randint(1, 4)), rng.randrange(1, 10 ** rng.randint(1, 4))
    first, second = rng.choice((("a", "b"), ("a", "b"), ("x", "y"), ("first", "second")))
    if rng.random() < 0.25:
        function = _cased(rng, function, rng.choice(("numbers", "two_numbers")))
    kind = rng.choice(("integer", "number"))
    tool = _tool(rng, function, description, {first: (kind, "The first number"), second: (kind, "The second number")})
    value = {"add": a + b, "multiply": a * b, "subtract": a - b, "divide": a // b}[
        next(v for v in ("add", "multiply", "subtract", "divide") if function.startswith(v))
    ]
    result = rng.choice((str(value), json.dumps({"result": value})))
    return Call(
        tool, expand(verb, {"a": str(a), "b": str(b)}, rng), {first: a, second: b}, result, f"The result is {value}."
    )


def _one_string(rng: random.Random) -> Call:
    """Domains with one string: play, search, open, translate ..."""
    what = rng.choice((
        (("play_song", "play_music", "play"), "Play a song", ("title", "song", "name"), "[Play {v}.|Play the song {v}.|I want to hear the song {v}.|Please play {v}.]", "I am playing {v}."),
        (("search", "web_search", "search_web"), "Search the web", ("query", "q", "text"), "[Search for {v}.|Search the web for {v}.|Look up {v} on the web.|Find something about {v}.]", ""),
        (("open_app", "open", "start_app"), "Open a program", ("app", "name", "program"), "[Open {v}.|Please open {v}.|Start the app {v}.]", "I have opened {v}."),
        (("turn_on_light", "light_on", "switch_on_light"), "Turn on the light in a room", ("room", "place", "location"), "[Turn on the light in the {r}.|Please make light in the {r}.|Switch on the light in the {r}.]", "The light in the {r} is on."),
        (("get_time", "get_current_time", "time_in"), "Get the current time in a city", ("city", "location", "timezone"), "[What time is it in {c}?|What is the time in {c}?|Tell me the time in {c}.|How late is it in {c}?]", "time"),
        (("create_note", "add_note", "write_note"), "Create a note", ("text", "note", "content"), "[Make a note: {v}|Note this: {v}|Write down: {v}|Create a note with the text {v}]", "I have made the note."),
        (("find_recipe", "get_recipe", "search_recipe"), "Find a recipe for a dish", ("dish", "food", "name"), "[Find a recipe for {f}.|How do I cook {f}?|I need a recipe for {f}.]", ""),
        (("get_capital", "capital_of", "lookup_capital"), "Get the capital of a country", ("country", "name"), "[What is the capital of {k}?|Which city is the capital of {k}?]", ""),
        (("get_population", "population", "count_people"), "Get the population of a city", ("city", "place"), "[What is the population of {c}?|How many people live in {c}?]", "people"),
    ))  # fmt: skip
    names, description, keys, wording, ending = what
    value = expand(
        "[{t}|{a} {t}|{n} and the {t}|{m}]",
        {"t": thing_word(rng), "a": rng.choice(words.COLOURS), "n": name(rng), "m": made_up_word(rng)},
        rng,
    )
    slots = {
        "v": value,
        "r": rng.choice(
            ("kitchen", "garden", "bathroom", "bedroom", "cellar", "hall", "attic", "garage", "office", "library")
        ),
        "c": rng.choice(words.CITIES),
        "f": rng.choice(words.STORY_FOODS),
        "k": rng.choice(words.CAPITALS)[0],
    }
    slot = next(s for s in ("r", "c", "f", "k", "v") if f"{{{s}}}" in wording)
    key = rng.choice(keys)
    tool = _tool(
        rng,
        rng.choice(names),
        rng.choice((description, description + ".")),
        {key: ("string", rng.choice((f"The {key}", f"The {key} to use", "")))},
    )
    if ending == "time":
        clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
        result, answer = rng.choice((clock, json.dumps({"time": clock}))), f"It is {clock} in {slots['c']}."
    elif ending == "people":
        people = str(rng.randrange(1000, 20_000_000))
        result, answer = (
            rng.choice((people, json.dumps({"population": int(people)}))),
            f"{people} people live in {slots['c']}.",
        )
    elif ending:
        result, answer = rng.choice(("ok", "done", '{"status": "ok"}', '{"success": true}')), expand(ending, slots, rng)
    else:
        found = " ".join(thing_word(rng) for _ in range(rng.randint(1, 4)))
        result, answer = rng.choice((found, json.dumps({"result": found}))), f"I found this: {found}."
    return Call(tool, expand(wording, slots, rng), {key: slots[slot]}, result, answer)


_ATTRIBUTES = (
    "price",
    "colour",
    "weight",
    "age",
    "height",
    "size",
    "owner",
    "name",
    "length",
    "status",
    "number",
    "address",
    "code",
    "speed",
    "value",
    "date",
    "score",
    "rank",
    "author",
    "smell",
    "taste",
    "shape",
    "temperature",
    "depth",
)
_ENTITIES = (
    words.THINGS[:60]
    + words.ANIMALS[:40]
    + (
        "product",
        "item",
        "city",
        "mountain",
        "river",
        "ship",
        "train",
        "planet",
        "order",
        "ticket",
        "book",
        "user",
        "room",
    )
)


def _attribute(rng: random.Random) -> Call:
    """A random look-up: `get_height(mountain)`; the request names attribute and thing."""
    attribute = rng.choice(_ATTRIBUTES) if rng.random() < 0.9 else made_up_word(rng)
    thing = thing_word(rng) if rng.random() < 0.6 else rng.choice(words.CITIES) if rng.random() < 0.5 else name(rng)
    key = rng.choice(("item", "name", "object", "thing", "product", "id", "target", "what", "key", made_up_word(rng)))
    function = _cased(
        rng,
        rng.choice(("get", "get", "get", "lookup", "find", "fetch", "read", "query", "")),
        attribute,
        rng.choice(("", "", "of", "info")),
    )
    tool = _tool(
        rng,
        function,
        rng.choice(
            (
                f"Get the {attribute} of something",
                f"Returns the {attribute} of the given {key}.",
                f"Look up the {attribute} of a thing",
                f"Get the {attribute} of {with_article(key)}",
            )
        ),
        {key: ("string", rng.choice((f"The {key}", f"The {key} to look up", "")))},
    )
    the = "the " if thing[0].islower() else ""
    request = expand(
        f"[What is the {attribute} of {the}{{v}}?|Tell me the {attribute} of {the}{{v}}.|Which {attribute} does {the}{{v}} have?|Find the {attribute} of {the}{{v}}.|I need the {attribute} of {the}{{v}}.|What {attribute} does {the}{{v}} have?]",
        {"v": thing},
        rng,
    )
    value = rng.choice((number(rng), rng.choice(words.COLOURS), made_up_word(rng), rng.choice(words.THINGS), name(rng)))
    result = rng.choice(
        (
            value,
            json.dumps({attribute: value}),
            json.dumps({"result": value}),
            json.dumps({key: thing, attribute: value}),
        )
    )
    return Call(tool, request, {key: thing}, result, f"The {attribute} of {the}{thing} is {value}.")


_VERBS = (
    "move",
    "paint",
    "open",
    "close",
    "buy",
    "sell",
    "order",
    "book",
    "delete",
    "create",
    "start",
    "stop",
    "wash",
    "count",
    "hide",
    "lift",
    "mark",
    "print",
    "save",
    "bake",
)


# What an action may be told: parameter names, JSON type, how a value is drawn, how the request says it.
_PIECES: tuple[tuple[tuple[str, ...], str, Callable[[random.Random], str | int], str], ...] = (
    (("count", "amount", "number", "quantity"), "integer", lambda rng: rng.randint(1, 99), " {v} times"),
    (("colour", "color"), "string", lambda rng: rng.choice(words.COLOURS), " in {v}"),
    (("place", "city", "location"), "string", lambda rng: rng.choice(words.CITIES), " in {v}"),
    (("person", "name", "user"), "string", name, " for {v}"),
    (("day", "weekday", "date"), "string", lambda rng: rng.choice(words.WEEKDAYS), " on {v}"),
    (("fast", "quietly", "now", "carefully"), "boolean", lambda rng: True, " {k}"),
    (("size", "height", "weight"), "number", lambda rng: rng.randint(1, 500), " with {k} {v}"),
)


def _action(rng: random.Random) -> Call:
    """A random action with one to three parameters of several types."""
    verb = rng.choice(_VERBS)
    noun = rng.choice((*words.THINGS[:80], "room", "table", "file", "ticket", "order"))
    parameters: dict[str, tuple[str, str]] = {}
    arguments: Json = {}
    wording = f"{verb} the {noun}"
    for keys, kind, draw, text in rng.sample(_PIECES, rng.randint(1, 3)):
        key, value = rng.choice(keys), draw(rng)
        parameters[key] = (kind, rng.choice((f"The {key}", "", f"The {key} to use")))
        arguments[key] = value
        wording += text.format(v=value, k=key)
    description = rng.choice((f"{capital(verb)} the {noun}", f"{capital(verb)} {with_article(noun)}."))
    tool = _tool(rng, _cased(rng, verb, noun), description, parameters)
    request = expand("[{W}.|Please {w}.|Can you {w}?|I want you to {w}.|{W}, please.]", {"w": wording}, rng)
    result = rng.choice(("ok", "done", '{"status": "ok"}', '{"success": true}'))
    return Call(tool, request, arguments, result, "Done.")


MAKERS: tuple[tuple[float, Callable[[random.Random], Call]], ...] = (
    (0.22, _weather), (0.07, _timer), (0.08, _message), (0.1, _arithmetic), (0.2, _one_string), (0.18, _attribute), (0.15, _action),
)  # fmt: skip


def draw_call(rng: random.Random) -> Call:
    """Any function with a request for it."""
    return rng.choices([maker for _, maker in MAKERS], [weight for weight, _ in MAKERS])[0](rng)


def draw_tools(rng: random.Random, call: Call | None, count: int) -> list[Json]:
    """`count` tools with different names, `call`'s among them at a random place."""
    tools = {call.name: call.tool} if call else {}
    while len(tools) < count:
        other = draw_call(rng)
        if call and (
            other.request.split()[:3] == call.request.split()[:3] or _family(other.name) == _family(call.name)
        ):
            continue  # two tools for one request would make the right call a matter of luck
        tools.setdefault(other.name, other.tool)
    listed = list(tools.values())
    rng.shuffle(listed)
    return listed


def _family(function_name: str) -> str:
    """Functions of one family answer the same requests."""
    lowered = function_name.lower()
    for family in (
        "weather",
        "forecast",
        "temperature",
        "timer",
        "message",
        "email",
        "text",
        "play",
        "search",
        "open",
        "light",
        "time",
        "note",
        "recipe",
        "capital",
        "population",
        "add",
        "multiply",
        "subtract",
        "divide",
    ):
        if family in lowered:
            return {"forecast": "weather", "temperature": "weather", "email": "message", "text": "message"}.get(
                family, family
            )
    return lowered
