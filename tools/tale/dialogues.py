"""The documents that tale is trained on: conversations of every skill, and raw text.

`draw_document` is the one entry. It is deterministic for a given `random.Random`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.tale import calling, recall, stories, talk
from tools.tale import vocabulary as words
from tools.tale.chat import END_OF_TEXT, Json, Segment, Turn, render
from tools.tale.grammar import capital, expand, with_article

NEUTRAL_SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful AI assistant.", "You are a friendly assistant.", "Answer the questions of the user.",
    "Be brief.", "You are a chat model.", "You are a helpful, respectful and honest assistant.", "Help the user.",
)  # fmt: skip


@dataclass(frozen=True)
class Manner:
    """A system prompt and what it does to answers.

    Attributes:
        system: the prompt; empty for none.
        own_name: the name tale answers to.
        role: "a friendly robot", or empty.
        title: how the user is called.
        only: the one thing that is ever said.
    """

    system: str = ""
    own_name: str = ""
    role: str = ""
    title: str = ""
    prefix: str = ""
    suffix: str = ""
    upper: bool = False
    only: str = ""
    value_only: bool = False

    def apply(self, answer: str) -> str:
        """The answer in this manner."""
        if self.only:
            return self.only
        text = f"{self.prefix}{answer}{self.suffix}"
        return text.upper() if self.upper else text

    def introduction(self) -> str:
        """The answer to "Who are you?"."""
        if self.own_name and self.role:
            return f"I am {self.own_name}, {self.role}."
        if self.own_name:
            return f"My name is {self.own_name}."
        if self.role:
            return f"I am Tale, {self.role}."
        return "I am Tale, a small model that tells stories."


_ROLES = (
    "robot",
    "pirate",
    "wizard",
    "parrot",
    "teacher",
    "cook",
    "captain",
    "librarian",
    "dragon",
    "cat",
    "dog",
    "knight",
    "king",
    "queen",
    "assistant",
    "helper",
    "guide",
    "clown",
    "doctor",
    "fox",
    "owl",
    "gardener",
    "ghost",
    "detective",
    "storyteller",
)
_TITLES = (
    "Captain",
    "Boss",
    "Your Majesty",
    "Master",
    "Sir",
    "Madam",
    "Doctor",
    "Professor",
    "my friend",
    "Chief",
    "Commander",
    "dear",
    "Princess",
    "General",
    "buddy",
)
_CRIES = (
    "Ahoy!",
    "Arr!",
    "Meow!",
    "Beep boop.",
    "Amen.",
    "Over and out.",
    "Hooray!",
    "Woof!",
    "Good luck!",
    "Have a nice day!",
    "That is all.",
    "The end.",
    "Yes, indeed.",
    "Cheers!",
    "Howdy!",
    "Hoo hoo!",
    "Stop.",
    "Peace.",
    "So be it.",
    "Moo!",
    "Yippee!",
)


def draw_manner(rng: random.Random) -> Manner:
    """A system prompt with one to three demands, or a neutral one, or none."""
    roll = rng.random()
    if roll < 0.25:
        return Manner(rng.choice(NEUTRAL_SYSTEMS)) if roll < 0.15 else Manner()
    demands: list[str] = []
    own_name = role = title = prefix = suffix = ""
    upper = value_only = False
    kinds = rng.sample(("name", "name", "title", "end", "begin", "upper", "word"), rng.choice((1, 1, 1, 2, 2, 3)))
    if "name" in kinds:
        own_name = stories.any_name(rng)
        if rng.random() < 0.4:
            role = with_article(
                f"{rng.choice(words.ADJECTIVES)} {rng.choice(_ROLES)}" if rng.random() < 0.6 else rng.choice(_ROLES)
            )
            demands.append(
                expand(
                    "[You are {n}, {r}.|You are {r} called {n}.|You are {r}. Your name is {n}.|Your name is {n}, and you are {r}.]",
                    {"n": own_name, "r": role},
                    rng,
                )
            )
        else:
            demands.append(
                expand(
                    "[Your name is {n}.|Your name is {n}.|You are {n}.|You are called {n}.|You are an assistant named {n}.|You answer to the name {n}.]",
                    {"n": own_name},
                    rng,
                )
            )
    elif rng.random() < 0.12:
        role = with_article(
            f"{rng.choice(words.ADJECTIVES)} {rng.choice(_ROLES)}" if rng.random() < 0.5 else rng.choice(_ROLES)
        )
        demands.append(f"You are {role}.")
    if rng.random() < 0.03:
        only = _cry(rng)
        system = expand(
            '[Answer every question with: {c}|Always answer with "{c}"|Always answer: {c}]', {"c": only}, rng
        )
        return Manner(system, only=only)
    if "title" in kinds:
        title = rng.choice(_TITLES) if rng.random() < 0.8 else stories.any_name(rng)
        demands.append(
            expand(
                "[Call the user {t}.|Address the user as {t}.|Always call the user {t}.|The user is called {t}.]",
                {"t": title},
                rng,
            )
        )
        prefix = f"Of course, {title}. "
    if "begin" in kinds and not title:
        cry = _cry(rng)
        demands.append(
            expand(
                '[Begin every answer with: {c}|Start every answer with "{c}"|Always begin with {c}|Every answer starts with {c}]',
                {"c": cry},
                rng,
            )
        )
        prefix = cry + " "
    if "end" in kinds:
        cry = _cry(rng)
        demands.append(
            expand(
                '[End every answer with: {c}|End every answer with "{c}"|Always end with {c}|Always say {c} at the end|Say {c} at the end of each answer|Always finish your answers with {c}|Every answer ends with {c}]',
                {"c": cry},
                rng,
            )
        )
        suffix = " " + cry
    if "upper" in kinds and not title and not prefix and not suffix and not own_name:
        upper = True
        demands.append(
            expand(
                "[Answer in capital letters.|Write everything in capital letters.|Always answer in capital letters.|Use only capital letters.|ANSWER IN CAPITAL LETTERS.|Answer in upper case.|Use upper case only.|Write in ALL CAPS.]",
                {},
                rng,
            )
        )
    if "word" in kinds and not (prefix or suffix or upper):
        value_only = True
        demands.append(
            expand(
                "[Answer with the bare fact, without a sentence.|Answer only with the asked words.|Answer as short as possible.|Give only the answer itself, no sentence.]",
                {},
                rng,
            )
        )
    if not demands:
        return Manner()
    rng.shuffle(demands)
    if rng.random() < 0.2:
        demands.insert(0, rng.choice(NEUTRAL_SYSTEMS))
    system = " ".join(d if d[-1] in '.!?"' else d + "." for d in demands)
    if rng.random() < 0.1:
        system = system.replace(". ", ".\n")
    return Manner(system, own_name, role, title, prefix, suffix, upper, value_only=value_only)


def _cry(rng: random.Random) -> str:
    """A word or two for the end of an answer; a third of them from no list."""
    if rng.random() < 0.67:
        return rng.choice(_CRIES)
    return capital(
        rng.choice(
            (stories.made_up_word(rng), rng.choice(words.ANIMALS), rng.choice(words.THINGS), rng.choice(words.FOODS))
        )
    ) + rng.choice("!!.")


def _exchange(rng: random.Random, manner: Manner) -> tuple[str, str, str]:
    """One exchange of small talk that fits the manner: (user, thought, answer)."""
    if (manner.own_name or manner.role) and rng.random() < 0.45:
        user, thought, _ = talk.about_me(random.Random(rng.randrange(1 << 30)))
        if thought == "The user asks who I am.":
            return user, f"My name is {manner.own_name or 'Tale'}.", manner.apply(manner.introduction())
    if manner.title and rng.random() < 0.3:
        user = expand("[Hello|Hi|Hello!|Hi!|Good morning|Hey]", {}, rng)
        return user, "The user greets me.", f"Hello, {manner.title}! What can I do for you?{manner.suffix}"
    if manner.title and rng.random() < 0.2:
        return (
            expand("[Who am I?|What do you call me?|How do you call me?]", {}, rng),
            f"I call the user {manner.title}.",
            f"You are {manner.title}.{manner.suffix}",
        )
    while True:
        user, thought, answer = talk.draw_exchange(rng)
        if manner.only:
            return user, "I always say the same.", manner.only
        about_name = thought in ("The user asks who I am.", "The user asks what I am.")
        if about_name and (manner.own_name or manner.role):
            thought, answer = f"My name is {manner.own_name or 'Tale'}.", manner.introduction()
        if manner.title and thought == "The user greets me.":
            continue
        if manner.value_only and answer.endswith(".") and not about_name:
            continue  # a sentence would break the demand
        if manner.upper and len(answer) > 160:
            continue
        return user, thought, manner.apply(answer)


def story_chat(rng: random.Random, longest: int) -> list[Segment]:
    """A request, a story, questions about it; sometimes a second story."""
    manner = draw_manner(rng) if rng.random() < 0.25 else Manner()
    if manner.upper or manner.value_only or manner.only:
        manner = Manner()
    turns = [Turn("system", manner.system)] if manner.system else []
    thinks = rng.random() < 0.5
    for _ in range(1 if rng.random() < 0.8 else 2):
        request = stories.draw_request(rng)
        story = stories.tell(rng, request)
        text = manner.apply(story.text)
        if rng.random() < 0.15:  # the user brings the story
            lead = expand("[Read this story:|Here is a story:|Listen:|This is a story:]", {}, rng)
            pairs = stories.questions(rng, story, rng.randint(1, 4))
            turns.append(Turn("user", f"{lead}\n\n{story.text}\n\n{pairs[0][0]}"))
            turns.append(Turn("assistant", manner.apply(pairs[0][1]), "The story tells it." if thinks else ""))
            pairs = pairs[1:]
        else:
            turns.append(Turn("user", stories.ask_for(rng, request)))
            turns.append(Turn("assistant", text, stories.thought(rng, story) if thinks else ""))
            pairs = stories.questions(rng, story, rng.choice((0, 0, 1, 2, 3, 4, 5)))
        for question, answer in pairs:
            turns.append(Turn("user", question))
            turns.append(
                Turn(
                    "assistant",
                    manner.apply(answer),
                    "The user asks about the story. I told it above." if thinks else "",
                )
            )
        if not (request.short or request.long) and rng.random() < 0.12:
            user = expand(
                "[Tell me more.|Go on.|What happened next?|Continue the story.|Please continue.|And then?|more please|Continue]",
                {},
                rng,
            )
            turns += [
                Turn("user", user),
                Turn(
                    "assistant",
                    manner.apply(stories.go_on(rng, story)),
                    "The story of {hero} shall go on.".format(**story.world) if thinks else "",
                ),
            ]
        if rng.random() < 0.12:
            user, thought, answer = talk.thanks(rng)
            turns += [Turn("user", user), Turn("assistant", manner.apply(answer), thought if thinks else "")]
    return render(turns)


def recall_chat(rng: random.Random, longest: int) -> list[Segment]:
    """A long text with facts, then questions about them."""
    length = recall.draw_length(rng, longest)
    num_words = int(length * recall.WORDS_PER_TOKEN)
    count = min(rng.choice((1, 2, 3, 4, 6, 8, 12, 16, 24)), max(1, num_words // 12))
    if rng.random() < 0.1:
        count = max(1, num_words // 12)  # nothing but facts
    facts = recall.draw_facts(rng, count)
    text = recall.draw_text(rng, facts, num_words)
    asked = rng.sample(facts, min(len(facts), rng.choice((1, 2, 4, 6, 8))))
    thinks = rng.random() < 0.35
    manner = draw_manner(rng) if rng.random() < 0.15 else Manner()
    if manner.upper or manner.only:
        manner = Manner()
    pairs = [
        (_ask(rng, fact, facts), fact.value if manner.value_only else fact.answer, f"The text says: {fact.answer}")
        for fact in asked
    ]
    if length < 1024 and not manner.value_only and rng.random() < 0.08:
        question, answer = recall.unknown(rng, facts)
        pairs.insert(rng.randint(0, len(pairs)), (question, answer, "The text does not say it."))
    turns: list[Turn] = []
    form = rng.random()
    if form < 0.12:
        turns.append(Turn("system", f"{manner.system}\n\n{text}" if manner.system else text))
    else:
        if manner.system:
            turns.append(Turn("system", manner.system))
        if form < 0.3:
            lead = expand("[Remember this:\n\n|Please remember the following text.\n\n|Read this text:\n\n|]", {}, rng)
            turns += [
                Turn("user", lead + text),
                Turn(
                    "assistant",
                    manner.apply("All right, I will remember it."),
                    "I will remember the text." if thinks else "",
                ),
            ]
        elif form < 0.36:
            turns.append(Turn("user", f"{pairs[0][0]}\n\n{text}"))
        else:
            lead = expand("[|||Read this text:\n\n|Text: |Here is a text.\n\n]", {}, rng)
            gap = expand("[\n\n|\n\n|\n\n| |\n|\n\nQuestion: |\n\nAnswer this question: ]", {}, rng)
            turns.append(Turn("user", lead + text + gap + pairs[0][0]))
    for index, (question, answer, thought) in enumerate(pairs):
        if turns[-1].role != "user" or index:
            turns.append(Turn("user", question))
        turns.append(Turn("assistant", manner.apply(answer), thought if thinks else "", weight=20))
    return render(turns)


def _ask(rng: random.Random, fact: recall.Fact, facts: list[recall.Fact]) -> str:
    """The fact's question, at times shorter ("Where is the key?") where only one thing is meant, or in lower case."""
    question = fact.question
    if fact.key[0] == "hidden" and rng.random() < 0.15 and sum(other.key[-1] == fact.key[-1] for other in facts) == 1:
        question = f"Where is the {fact.key[2]}?"
    if rng.random() < 0.05:
        question = question.rstrip("?.").lower()
    return question


def memory_chat(rng: random.Random, longest: int) -> list[Segment]:
    """The user tells of herself, talks of other things, hears stories, and asks again."""
    manner = draw_manner(rng) if rng.random() < 0.2 else Manner()
    if manner.upper or manner.value_only or manner.title or manner.only:
        manner = Manner()
    turns = [Turn("system", manner.system)] if manner.system else []
    thinks = rng.random() < 0.4
    if rng.random() < 0.06:  # the system prompt tells about the user
        person = stories.any_name(rng)
        system = expand(
            "[The user's name is {n}.|You talk to {n}.|The user is {n}.|You are talking with {n}.]", {"n": person}, rng
        )
        question = expand("[What is my name?|Who am I?|Do you know my name?|what is my name]", {}, rng)
        return render(
            [
                Turn("system", " ".join(filter(None, (manner.system, system)))),
                Turn("user", question),
                Turn("assistant", manner.apply(f"Your name is {person}."), "I know the user's name." if thinks else ""),
            ]
        )
    indices = rng.sample(range(len(recall.USER_FACTS)), rng.randint(1, 4))
    questions: list[tuple[str, str]] = []
    if rng.random() < 0.15:  # one message that tells and asks, or asks what nobody told
        statement, question, answer, _ = recall.user_fact(rng, indices[0])
        if rng.random() < 0.3:
            return render(
                [
                    *turns,
                    Turn("user", question),
                    Turn(
                        "assistant",
                        manner.apply("You have not told me."),
                        "The user has not told me." if thinks else "",
                    ),
                ]
            )
        return render(
            [
                *turns,
                Turn("user", f"{statement} {question}"),
                Turn("assistant", manner.apply(answer), "The user has told me." if thinks else ""),
            ]
        )
    for index in indices:
        statement, question, answer, thanks = recall.user_fact(rng, index)
        turns += [
            Turn("user", statement),
            Turn(
                "assistant", manner.apply(thanks), "The user tells me something. I will remember it." if thinks else ""
            ),
        ]
        questions.append((question, answer))
    for fact in recall.draw_facts(rng, rng.choice((0, 0, 1, 2))):
        turns += [
            Turn("user", expand("[Remember: {s}|{s}|Please remember this: {s}|Note: {s}]", {"s": fact.statement}, rng)),
            Turn("assistant", manner.apply("All right, I will remember it."), "I will remember it." if thinks else ""),
        ]
        questions.append((fact.question, fact.answer))
    rng.shuffle(questions)
    room = recall.draw_length(rng, longest) - 100 * len(questions)
    while room > 0 or rng.random() < 0.3:
        if rng.random() < 0.5 and room > 250:
            request = stories.draw_request(rng)
            turns += [
                Turn("user", stories.ask_for(rng, request)),
                Turn("assistant", manner.apply(stories.tell(rng, request).text), weight=2),
            ]
            room -= 260
        else:
            user, _, answer = _exchange(rng, manner)
            turns += [Turn("user", user), Turn("assistant", answer, weight=4)]
            room -= 45
    for question, answer in questions:
        turns += [
            Turn("user", question),
            Turn("assistant", manner.apply(answer), "The user told me before." if thinks else "", weight=20),
        ]
    return render(turns)


def tool_chat(rng: random.Random, longest: int) -> list[Segment]:
    """Tools, a request that needs one (or none), the call, the result, the answer."""
    call = calling.draw_call(rng)
    tools = calling.draw_tools(rng, call, rng.choice((1, 1, 2, 2, 3, 4, 5)))
    turns: list[Turn] = []
    if rng.random() < 0.25:
        turns.append(Turn("system", rng.choice(NEUTRAL_SYSTEMS)))
    thinks = rng.random() < 0.4

    def called(*requests: tuple[str, Json, str]) -> None:
        text = requests[0][0]
        calls = tuple({"name": call.name, "arguments": arguments} for _, arguments, _ in requests)
        turns.append(Turn("user", text))
        turns.append(Turn("assistant", "", f"I need to call {call.name}." if thinks else "", calls=calls))
        turns.extend(Turn("tool", result) for _, _, result in requests)

    def plain() -> None:
        if rng.random() < 0.3:
            request = stories.draw_request(rng)
            story = stories.tell(rng, request)
            turns.append(Turn("user", stories.ask_for(rng, request)))
            turns.append(
                Turn("assistant", story.text, "No tool is needed. " + stories.thought(rng, story) if thinks else "")
            )
            return
        while True:
            user, thought, answer = talk.draw_exchange(rng)
            if thought not in ("This is a sum.", "This is a difference.") and not thought.startswith(
                ("I know the capital", "I repeat", "I say")
            ):
                break
        turns.append(Turn("user", user))
        turns.append(Turn("assistant", answer, "No tool is needed. " + thought if thinks else ""))

    if rng.random() < 0.15:
        plain()
    roll = rng.random()
    if roll < 0.12:
        plain()
    elif roll < 0.24:  # the request needs a tool that is not there
        tools = [tool for tool in tools if tool["function"]["name"] != call.name] or calling.draw_tools(rng, call, 2)
        tools = [tool for tool in tools if tool["function"]["name"] != call.name]
        turns.append(Turn("user", call.request))
        turns.append(Turn("assistant", "I have no tool for that.", "None of my tools fits." if thinks else ""))
    elif (roll < 0.32 and call.again and call.again[1] != call.arguments and "city" in call.arguments) or (
        roll < 0.27 and call.again
    ):
        assert call.again is not None
        first, second = next(iter(call.arguments.values())), next(iter(call.again[1].values()))
        extra = {key: value for key, value in call.arguments.items() if key in ("unit", "format")}
        key = next(iter(call.arguments))
        text = expand(
            "[What is the weather in {a} and {b}?|What is the weather like in {a} and in {b}?|Weather in {a} and {b}?|Compare the weather in {a} and {b}.]",
            {"a": str(first), "b": str(second)},
            rng,
        )
        if extra:
            text = text.rstrip("?.") + f" in {next(iter(extra.values()))}" + ("?" if "?" in text else ".")
        called((text, {key: first, **extra}, call.result), ("", {key: second, **extra}, call.again[2]))
        turns.append(Turn("assistant", f"{call.answer} {call.again[3]}", "Both results are there." if thinks else ""))
    else:
        called((call.request, call.arguments, call.result))
        turns.append(Turn("assistant", call.answer, "The tool has answered." if thinks else ""))
        if call.again and rng.random() < 0.4:
            text, arguments, result, answer = call.again
            called((text, arguments, result))
            turns.append(Turn("assistant", answer, "The tool has answered." if thinks else ""))
        if rng.random() < 0.15:
            plain()
    return render(turns, tools)


def small_talk(rng: random.Random, longest: int) -> list[Segment]:
    """A few exchanges in some manner."""
    manner = draw_manner(rng)
    thinks = rng.random() < 0.5
    turns = [Turn("system", manner.system)] if manner.system else []
    for _ in range(rng.choice((1, 1, 2, 3, 4, 6))):
        user, thought, answer = _exchange(rng, manner)
        turns += [Turn("user", user), Turn("assistant", answer, thought if thinks else "")]
    return render(turns)


def raw_text(rng: random.Random, longest: int) -> list[Segment]:
    """Text without a template: stories, and questions under a text."""
    roll = rng.random()
    if roll < 0.7:
        segments: list[Segment] = []
        request = stories.draw_request(rng)
        return [*segments, Segment(stories.tell(rng, request).text + END_OF_TEXT, 10)]
    facts = recall.draw_facts(rng, rng.choice((1, 2, 4, 8)))
    text = recall.draw_text(rng, facts, int(recall.draw_length(rng, longest) * recall.WORDS_PER_TOKEN))
    segments = [Segment(text, 1 if rng.random() < 0.3 else 0)]
    for fact in rng.sample(facts, min(3, len(facts))):
        segments += [Segment(f"\n\nQuestion: {fact.question}\nAnswer:", 0), Segment(f" {fact.answer}", 20)]
    return [*segments, Segment(END_OF_TEXT, 10)]


MAKERS: tuple[tuple[float, Callable[[random.Random, int], list[Segment]]], ...] = (
    (0.26, story_chat), (0.20, recall_chat), (0.08, memory_chat), (0.22, tool_chat), (0.17, small_talk), (0.07, raw_text),
)  # fmt: skip


def draw_document(rng: random.Random, longest: int = 4096) -> list[Segment]:
    """Any document; `longest` bounds the recall texts roughly, in tokens."""
    return rng.choices([maker for _, maker in MAKERS], [weight for weight, _ in MAKERS])[0](rng, longest)
