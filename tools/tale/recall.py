"""Facts, texts that hide them, and questions that need them: the training of long-range recall.

A document holds a few facts among filler: sentences about nothing, stories, one sentence repeated, other facts of the
same kinds. The answer always repeats the fact in one fixed wording, so that the share of right answers can be counted.

One tenth of all facts about hidden things, chosen by a stable hash, is never used in training (`is_held_out`): the
evaluation asks about those alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.tale import vocabulary as words
from tools.tale.grammar import capital, expand, stable_hash, with_article
from tools.tale.stories import any_name as name
from tools.tale.stories import draw_request, made_up_word, tell

WORDS_PER_TOKEN = 0.66  # measured with the project's tokenizer on filler; lengths are aims, not limits


@dataclass(frozen=True)
class Fact:
    """One statement with a question and its answer.

    Attributes:
        key: facts in one document have different keys, so that each question has one answer.
        value: the part of the answer that must be right, for the evaluation.
    """

    key: tuple[str, ...]
    statement: str
    question: str
    answer: str
    value: str


def is_held_out(colour: str, thing: str, spot: str) -> bool:
    """Whether this hidden thing is kept for the evaluation."""
    return stable_hash(f"{colour} {thing} {spot}") % 10 == 0


def thing_word(rng: random.Random) -> str:
    """Any thing; a few of them made up."""
    return made_up_word(rng) if rng.random() < 0.06 else rng.choice(words.THINGS)


def number(rng: random.Random) -> str:
    """A number of one to seven digits."""
    return str(rng.randrange(10 ** rng.randint(1, 7)))


def _hidden(rng: random.Random, held_out: bool = False) -> Fact:
    while True:
        colour, thing, spot = rng.choice(words.COLOURS), thing_word(rng), rng.choice(words.SPOTS)
        if is_held_out(colour, thing, spot) == held_out:
            break
    slots = {"c": colour, "t": thing, "spot": spot, "n": name(rng)}
    form = rng.random()
    if form < 0.5:
        statement = expand(
            "[The {c} {t} of {n} is {spot}.|{n}'s {c} {t} is {spot}.|{n} has hidden a {c} {t} {spot}.|The {c} {t} of {n} lies {spot}.|{n} put the {c} {t} {spot}.]",
            slots,
            rng,
        )
    else:
        statement = expand(
            "[The {c} {t} is {spot}.|The {c} {t} lies {spot}.|There is a {c} {t} {spot}.|Somebody left the {c} {t} {spot}.|You can find the {c} {t} {spot}.]",
            slots,
            rng,
        )
    of = " of {n}" if form < 0.5 and rng.random() < 0.5 and ("of " in statement or "'s" in statement) else ""
    question = expand(
        f"[Where is the {{c}} {{t}}{of}?|Where is the {{c}} {{t}}{of}?|Where can I find the {{c}} {{t}}{of}?|Where does the {{c}} {{t}}{of} lie?|Do you know where the {{c}} {{t}}{of} is?]",
        slots,
        rng,
    )
    if of and rng.random() < 0.4:
        question = expand("[Where is {n}'s {c} {t}?|Where can I find {n}'s {c} {t}?]", slots, rng)
    return Fact(("hidden", colour, thing), statement, question, expand("The {c} {t} is {spot}.", slots, rng), spot)


def _code(rng: random.Random) -> Fact:
    what = rng.choice(
        ("code", "number", "password", "secret number", "magic number", "secret word", "secret code", "key")
    )
    value = made_up_word(rng) if "word" in what and rng.random() < 0.7 else number(rng)
    if rng.random() < 0.3:
        value = rng.choice(words.THINGS)
    of = rng.choice(
        (
            "",
            f" of the {rng.choice(words.THINGS)}",
            f" for {rng.choice(words.CITIES)}",
            f" of {name(rng)}",
            f" for the {rng.choice(words.STORY_PLACES)[1]}",
        )
    )
    slots = {"w": what + of, "v": value}
    statement = expand(
        "[The {w} is {v}.|The {w} is {v}.|Remember: the {w} is {v}.|Note that the {w} is {v}.]", slots, rng
    )
    question = expand("[What is the {w}?|What is the {w}?|Tell me the {w}.|Do you remember the {w}?]", slots, rng)
    return Fact(
        ("code", what + of) if of else ("code", what), statement, question, expand("The {w} is {v}.", slots, rng), value
    )


def _pet(rng: random.Random) -> Fact:
    slots = {"n": name(rng), "a": rng.choice(words.ANIMALS), "p": name(rng)}
    slots["an"] = with_article(slots["a"])
    statement = expand("[{n} has {an} called {p}.|{n} owns {an} named {p}.|{n}'s {a} is called {p}.]", slots, rng)
    question = expand("[What is {n}'s {a} called?|What is the name of {n}'s {a}?]", slots, rng)
    return Fact(("pet", slots["n"]), statement, question, expand("{n}'s {a} is called {p}.", slots, rng), slots["p"])


def _home(rng: random.Random) -> Fact:
    slots = {"n": name(rng), "v": rng.choice(words.CITIES)}
    statement = expand("[{n} lives in {v}.|{n} comes from {v} and lives there.|The home of {n} is in {v}.]", slots, rng)
    return Fact(
        ("home", slots["n"]),
        statement,
        expand("[Where does {n} live?|In which city does {n} live?]", slots, rng),
        expand("{n} lives in {v}.", slots, rng),
        slots["v"],
    )


def _favourite(rng: random.Random) -> Fact:
    what, values = rng.choice(
        (
            ("colour", words.COLOURS),
            ("food", words.STORY_FOODS),
            ("animal", words.ANIMALS),
            ("city", words.CITIES),
            ("number", words.NUMBER_WORDS),
            ("day", words.WEEKDAYS),
        )
    )
    slots = {"n": name(rng), "w": what, "v": rng.choice(values)}
    statement = expand("{n}'s favourite {w} is {v}.", slots, rng)
    return Fact(
        ("favourite", slots["n"], what),
        statement,
        expand("[What is {n}'s favourite {w}?|Which {w} does {n} like best?]", slots, rng),
        statement,
        slots["v"],
    )


def _job(rng: random.Random) -> Fact:
    slots = {"n": name(rng), "v": with_article(rng.choice(words.JOBS))}
    statement = expand("[{n} is {v}.|{n} works as {v}.]", slots, rng)
    return Fact(
        ("job", slots["n"]),
        statement,
        expand("[What is {n}'s job?|What does {n} do?|What does {n} work as?]", slots, rng),
        expand("{n} is {v}.", slots, rng),
        slots["v"],
    )


def _age(rng: random.Random) -> Fact:
    slots = {"n": name(rng), "v": str(rng.randint(2, 99))}
    return Fact(
        ("age", slots["n"]),
        expand("{n} is {v} years old.", slots, rng),
        expand("[How old is {n}?|What is {n}'s age?]", slots, rng),
        expand("{n} is {v} years old.", slots, rng),
        slots["v"],
    )


def _content(rng: random.Random) -> Fact:
    slots = {
        "c": rng.choice(words.COLOURS),
        "b": rng.choice(("box", "bag", "chest", "jar", "room", "drawer")),
        "v": with_article(thing_word(rng)),
    }
    statement = expand("[In the {c} {b} there is {v}.|The {c} {b} holds {v}.|There is {v} in the {c} {b}.]", slots, rng)
    return Fact(
        ("content", slots["c"], slots["b"]),
        statement,
        expand("[What is in the {c} {b}?|What does the {c} {b} hold?]", slots, rng),
        expand("In the {c} {b} there is {v}.", slots, rng),
        slots["v"],
    )


def _price(rng: random.Random) -> Fact:
    slots = {"c": rng.choice(words.COLOURS), "t": thing_word(rng), "v": str(rng.randint(1, 999))}
    return Fact(
        ("price", slots["c"], slots["t"]),
        expand("The {c} {t} costs {v} coins.", slots, rng),
        expand("[How much is the {c} {t}?|How much does the {c} {t} cost?|What does the {c} {t} cost?]", slots, rng),
        expand("The {c} {t} costs {v} coins.", slots, rng),
        slots["v"],
    )


def _event(rng: random.Random) -> Fact:
    slots = {
        "e": rng.choice(
            ("party", "concert", "meeting", "market", "race", "wedding", "exam", "picnic", "play", "dinner")
        ),
        "n": name(rng),
        "v": rng.choice(words.WEEKDAYS),
    }
    return Fact(
        ("event", slots["e"], slots["n"]),
        expand("{n}'s {e} is on {v}.", slots, rng),
        expand("[When is {n}'s {e}?|On which day is {n}'s {e}?]", slots, rng),
        expand("{n}'s {e} is on {v}.", slots, rng),
        slots["v"],
    )


def _likes(rng: random.Random) -> Fact:
    slots = {"n": name(rng), "v": rng.choice(words.STORY_FOODS)}
    return Fact(
        ("likes", slots["n"]),
        expand("{n} likes {v}.", slots, rng),
        expand("[What does {n} like?|What does {n} like to eat?]", slots, rng),
        expand("{n} likes {v}.", slots, rng),
        slots["v"],
    )


def _owner(rng: random.Random) -> Fact:
    slots = {"n": name(rng), "c": rng.choice(words.COLOURS), "t": thing_word(rng)}
    statement = expand("[{n} has the {c} {t}.|{n} owns the {c} {t}.|The {c} {t} belongs to {n}.]", slots, rng)
    question = expand(
        "[Who has the {c} {t}?|Who owns the {c} {t}?|To whom does the {c} {t} belong?|Whose is the {c} {t}?]",
        slots,
        rng,
    )
    return Fact(
        ("owner", slots["c"], slots["t"]), statement, question, expand("{n} has the {c} {t}.", slots, rng), slots["n"]
    )


FAMILIES: tuple[tuple[float, Callable[[random.Random], Fact]], ...] = (
    (0.36, _hidden), (0.14, _code), (0.08, _pet), (0.07, _home), (0.08, _favourite), (0.06, _job), (0.04, _age),
    (0.06, _content), (0.05, _price), (0.03, _event), (0.03, _likes), (0.06, _owner),
)  # fmt: skip


def draw_facts(rng: random.Random, count: int, *, held_out: int = 0) -> list[Fact]:
    """Draw facts with different keys; the first `held_out` of them are hidden things kept from training."""
    facts: dict[tuple[str, ...], Fact] = {}
    while len(facts) < held_out:
        fact = _hidden(rng, held_out=True)
        facts.setdefault(fact.key, fact)
    makers = [maker for _, maker in FAMILIES]
    weights = [weight for weight, _ in FAMILIES]
    if rng.random() < 0.35:  # one family only: the hardest distractors are facts of the same form
        weights = [0.0] * len(makers)
        weights[rng.choice((0, 0, 0, 1, 2, 3, 4, 7))] = 1.0
    tries = 0
    while len(facts) < count:
        tries += 1
        if tries > 3 * count + 20:  # a family can run out of keys: sixteen colours of six containers are 96
            weights = [weight for weight, _ in FAMILIES]
        fact = rng.choices(makers, weights)[0](rng)
        if fact.key[0] == "code" and any(
            (key[0] == "code" and key[1].startswith(fact.key[1])) or fact.key[1].startswith(key[1])
            for key in facts
            if key[0] == "code"
        ):
            continue
        facts.setdefault(fact.key, fact)
    return list(facts.values())


_SCENES = (
    "[The {w} [morning|evening|day|night] [passes slowly|is long|begins early|ends late].|The {a} [sleeps|sits|waits|sings|plays|runs|rests] {s}.|A {w} wind blows over the [hill|fields|roofs|sea|meadow].|"
    "[Many|Some|Few|Two|Three] people [walk|talk|wait|sit] {s}.|The {p} is [quiet|old|small|far away|full of light] today.|{n} [reads|cooks|laughs|walks|dreams|works|hums a song|counts the stars].|"
    "The [grass|sky|sea|road|river|moon] is [green|blue|wide|long|deep|bright].|It is a {w} day and nothing happens.|[Here we go|There and back again|So it goes].|{n} and {m} [talk about the weather|play cards|drink tea|look at the clouds].|"
    "[Slowly|Quietly|Soon|Later] the [sun|moon|rain|fog] [comes|goes|returns].|The {a} and the {b} are [friends|tired|hungry|neighbours].|Nobody knows why the {a} [laughs|is late|looks up].|Bread and {f} are on the table.]"
)


def filler(rng: random.Random, num_words: int) -> list[str]:
    """About `num_words` words of text without facts, as sentences or paragraphs."""
    style = rng.random()
    sentences: list[str] = []
    count = 0
    repeated = ""
    if style < 0.12:
        repeated = " ".join(_scene(rng) for _ in range(rng.randint(1, 4)))
    while count < num_words:
        if repeated:
            sentence = repeated
        elif style < 0.35:
            sentence = tell(rng, draw_request(rng)).text.replace("\n\n", " ")
        elif style < 0.42:
            sentence = capital(" ".join(made_up_word(rng) for _ in range(rng.randint(3, 9)))) + "."
        elif style < 0.49:
            sentence = (
                capital(" ".join(rng.choice(words.THINGS + words.FOODS) for _ in range(rng.randint(4, 10)))) + "."
            )
        elif style < 0.54:
            sentence = " ".join(number(rng) for _ in range(rng.randint(2, 8))) + "."
        else:
            sentence = _scene(rng)
        sentences.append(sentence)
        count += len(sentence.split())
    return sentences


def _scene(rng: random.Random) -> str:
    slots = {
        "w": rng.choice(words.WEATHERS), "a": rng.choice(words.ANIMALS), "b": rng.choice(words.ANIMALS), "n": name(rng), "m": name(rng),
        "s": rng.choice(words.SPOTS), "p": rng.choice(words.STORY_PLACES)[1], "f": rng.choice(words.STORY_FOODS),
    }  # fmt: skip
    return expand(_SCENES, slots, rng)


def draw_text(rng: random.Random, facts: list[Fact], num_words: int, *, position: float | None = None) -> str:
    """Hide facts in filler.

    Args:
        facts: at most a few hundred; each stands at a random place of its own.
        num_words: aim for the whole text.
        position: where the first fact goes, 0 (front) to 1 (end); None draws it.
    """
    room = num_words - sum(len(fact.statement.split()) for fact in facts)
    sentences = filler(rng, room) if room > 0 else []
    for index, fact in enumerate(facts):
        place = position if index == 0 and position is not None else rng.random()
        sentences.insert(round(place * len(sentences)), fact.statement)
    separator = "\n" if rng.random() < 0.15 else " "
    return separator.join(sentences)


def draw_length(rng: random.Random, longest: int) -> int:
    """Length of a document in tokens: as likely between 64 and 128 as between 2,048 and 4,096."""
    return int(64 * (longest / 64) ** rng.random())


def unknown(rng: random.Random, facts: list[Fact]) -> tuple[str, str]:
    """A question that the facts do not answer."""
    known = {fact.key for fact in facts}
    while True:
        fact = _hidden(rng)
        if fact.key not in known:
            return (
                f"Where is the {fact.key[1]} {fact.key[2]}?",
                f"I do not know where the {fact.key[1]} {fact.key[2]} is.",
            )


USER_FACTS: tuple[tuple[str, str, str, str], ...] = (
    # statement, question, answer, acknowledgement
    ("[My name is {n}.|I am {n}.|Hi, my name is {n}.|Hello, I am {n}.|Call me {n}.]", "[What is my name?|Who am I?|Do you know my name?|Do you remember my name?|What was my name?]", "Your name is {n}.", "Nice to meet you, {n}!"),
    ("[I am {age} years old.|I just turned {age}.]", "[How old am I?|What is my age?]", "You are {age} years old.", "{age} is a good age."),
    ("[I live in {city}.|My home is in {city}.]", "[Where do I live?|In which city do I live?]", "You live in {city}.", "{city} is a fine place."),
    ("[My favourite colour is {c}.|The colour I like best is {c}.|My favorite color is {c}.]", "[What is my favourite colour?|Which colour do I like best?|What is my favorite color?]", "Your favourite colour is {c}.", "{C} is a lovely colour."),
    ("[I have {an} called {p}.|My {a} is called {p}.]", "[What is my {a} called?|What is the name of my {a}?]", "Your {a} is called {p}.", "Say hello to {p} from me."),
    ("[I like {f}.|I love {f}.]", "[What do I like?|What do I like to eat?]", "You like {f}.", "Good, I will remember that you like {f}."),
    ("[I work as {job}.|I am {job}.]", "[What is my job?|What do I do?]", "You are {job}.", "That is a good job."),
)  # fmt: skip


def user_fact(rng: random.Random, index: int) -> tuple[str, str, str, str]:
    """Statement, question, answer and acknowledgement of the fact number `index` of `USER_FACTS`."""
    animal = rng.choice(words.ANIMALS)
    slots = {
        "n": name(rng), "age": str(rng.randint(4, 99)), "city": rng.choice(words.CITIES), "c": rng.choice(words.COLOURS), "a": animal, "an": with_article(animal),
        "p": name(rng), "f": rng.choice(words.STORY_FOODS), "job": with_article(rng.choice(words.JOBS)),
    }  # fmt: skip
    statement, question, answer, thanks = (expand(text, slots, rng) for text in USER_FACTS[index])
    return statement, question, answer, thanks
