"""Small talk and simple skills: greetings, counting, repeating, lists, opposites, small sums; and what tale cannot do.

Each maker returns one exchange: (user, thought, assistant). The thought is one sentence about the request.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from tools.tale import vocabulary as words
from tools.tale.grammar import capital, expand, with_article
from tools.tale.recall import thing_word
from tools.tale.stories import KINDS, draw_person, made_up_word
from tools.tale.stories import any_name as name

Exchange = tuple[str, str, str]


def _pick(rng: random.Random, text: str, **slots: str) -> str:
    return expand(text, slots, rng)


def greeting(rng: random.Random) -> Exchange:
    """Hello, and how tale is."""
    if rng.random() < 0.65:
        user = _pick(
            rng,
            "[Hello|Hi|Hello!|Hi!|Hey|Hello there|Good morning|Good evening!|Good day|hello|hi|hey there|Hi there!|Greetings|Good afternoon|Servus|Yo]",
        )
        return user, "The user greets me.", "Hello! What can I do for you?"
    user = _pick(
        rng, "[How are you?|How are you today?|How do you do?|Are you well?|How is it going?|What's up?|how are you]"
    )
    return user, "The user asks how I am.", "I am fine, thank you. How are you?"


def thanks(rng: random.Random) -> Exchange:
    """Thanks, praise and goodbye."""
    roll = rng.random()
    if roll < 0.4:
        return (
            _pick(rng, "[Thank you!|Thanks!|Thanks a lot.|Thank you very much.|Many thanks|thank you|thanks]"),
            "The user thanks me.",
            "You are welcome!",
        )
    if roll < 0.65:
        return (
            _pick(rng, "[Goodbye!|Bye!|Bye bye|See you later.|Good night!|See you tomorrow|I have to go.|bye]"),
            "The user says goodbye.",
            "Goodbye! Come back soon.",
        )
    if roll < 0.85:
        return (
            _pick(
                rng,
                "[That was nice.|Well done!|Good job!|I like that.|Great!|That was a good story.|Very good|What a nice story!|Wonderful!]",
            ),
            "The user is pleased.",
            "Thank you! I am glad you liked it.",
        )
    return (
        _pick(rng, "[Ok|OK.|I see.|All right.|Okay|Fine.|Yes.|No.|Maybe.|Hm.|test|Test]"),
        "The user agrees.",
        "Good. What shall we do next?",
    )


def about_me(rng: random.Random) -> Exchange:
    """Who tale is, without a system prompt."""
    roll = rng.random()
    if roll < 0.6:
        user = _pick(
            rng,
            "[Who are you?|What is your name?|What's your name?|Tell me your name.|What are you called?|who are you|what is your name|Do you have a name?|Your name?|Please introduce yourself.|Tell me about yourself.|Hello, who are you?|Hi! What is your name?|What are you?|Introduce yourself]",
        )
        return user, "The user asks who I am.", "I am Tale, a small model that tells stories."
    if roll < 0.8:
        user = _pick(
            rng,
            "[What can you do?|What are you good at?|How can you help me?|Help!|help|What do you do?|Can you help me?]",
        )
        return (
            user,
            "The user asks what I can do.",
            "I can tell stories, answer questions about them, remember facts and call tools.",
        )
    if roll < 0.9:
        return (
            _pick(rng, "[Are you a robot?|Are you a human?|Are you real?|Are you an AI?|Are you a person?]"),
            "The user asks what I am.",
            "I am a small language model, and my name is Tale.",
        )
    return (
        _pick(rng, "[Who made you?|Who trained you?|Where do you come from?|How old are you?]"),
        "The user asks where I come from.",
        "I was trained by the project Hob, from stories that a program wrote.",
    )


def _numeral(rng: random.Random, number: int) -> str:
    """A number as a user may write it: digits, or a word up to twenty."""
    return words.NUMBER_WORDS[number] if number <= 20 and rng.random() < 0.4 else str(number)


def counting(rng: random.Random) -> Exchange:
    """Numbers in order, up and down."""
    roll = rng.random()
    if roll < 0.5:
        last = rng.randint(2, 20)
        return (
            _pick(
                rng,
                "[Count to {n}.|Count from 1 to {n}.|Please count to {n}.|Can you count to {n}?|count to {n}|Count up to {n}]",
                n=_numeral(rng, last),
            ),
            f"I count from 1 to {last}.",
            ", ".join(str(i) for i in range(1, last + 1)),
        )
    if roll < 0.75:
        first = rng.randint(0, 90)
        last = first + rng.randint(2, 12)
        return (
            _pick(
                rng,
                "[Count from {a} to {n}.|Please count from {a} to {n}.|List the numbers from {a} to {n}.]",
                a=_numeral(rng, first),
                n=_numeral(rng, last),
            ),
            f"I count from {first} to {last}.",
            ", ".join(str(i) for i in range(first, last + 1)),
        )
    first = rng.randint(3, 20)
    return (
        _pick(
            rng,
            "[Count down from {a}.|Count backwards from {a}.|Count from {a} to 1.|Count down from {a} to 1]",
            a=_numeral(rng, first),
        ),
        f"I count down from {first}.",
        ", ".join(str(i) for i in range(first, 0, -1)),
    )


def repeating(rng: random.Random) -> Exchange:
    """Words said again, once or several times, or spelled."""
    phrase = _pick(
        rng,
        "[{w}|{w}|{w}|{w} {m}|{w} {x} {t}|{a}|{t}|the {c} {t}|{m}|{n}|{m} {k}|{n} and {o}|the {a} likes the {t}|{f}]",
        a=rng.choice(words.ANIMALS),
        t=thing_word(rng),
        c=rng.choice(words.COLOURS),
        m=made_up_word(rng),
        k=made_up_word(rng),
        n=name(rng),
        o=name(rng),
        f=rng.choice(words.STORY_FOODS),
        w=rng.choice(words.COMMON_WORDS),
        x=rng.choice(words.COMMON_WORDS),
    )
    if rng.random() < 0.15:
        phrase = capital(phrase)
    roll = rng.random()
    if roll < 0.45:
        return (
            _pick(
                rng,
                '[Repeat after me: {p}|Say: {p}|Repeat: {p}|Say "{p}".|Please say "{p}".|Repeat the words: {p}|Echo: {p}|Say exactly: {p}|Reply with {p}|Reply with: {p}|Answer with {p}.|Say {p}|say {p}|Write: {p}|Just say {p}.]',
                p=phrase,
            ),
            "I repeat the words.",
            phrase,
        )
    if roll < 0.85:
        times = rng.randint(2, 6)
        return (
            _pick(
                rng,
                '[Say {p} {n} times.|Repeat "{p}" {n} times.|Say "{p}" {n} times.|Repeat the word {p} {n} times.|Write {p} {n} times]',
                p=phrase,
                n=rng.choice((words.NUMBER_WORDS[times], str(times))),
            ),
            f"I say it {words.NUMBER_WORDS[times]} times.",
            " ".join([phrase] * times),
        )
    word = rng.choice(words.THINGS)
    return (
        _pick(rng, "[Spell {w}.|Spell the word {w}.|How do you spell {w}?]", w=word),
        f"I spell {word}.",
        "-".join(word.upper().replace(" ", "")),
    )


LIST_TOPICS: dict[str, tuple[str, ...]] = {
    "animals": words.ANIMALS[:24], "fruits": ("apple", "pear", "plum", "cherry", "banana", "grape", "peach", "lemon", "melon", "orange"),
    "colours": words.COLOURS[:10], "cities": words.CITIES[:14], "names": words.FEMALE_NAMES[:8] + words.MALE_NAMES[:8], "jobs": words.JOBS[:14],
    "birds": ("owl", "raven", "crow", "sparrow", "robin", "eagle", "hawk", "stork", "heron", "dove"), "days": words.WEEKDAYS, "months": words.MONTHS,
    "things in a kitchen": ("pot", "pan", "spoon", "plate", "bowl", "cup", "kettle", "jar"), "vegetables": ("carrot", "potato", "pumpkin", "tomato", "bean", "cabbage", "onion"),
}  # fmt: skip


def listing(rng: random.Random) -> Exchange:
    """Name some things, as a line or as a numbered list."""
    topic = rng.choice(list(LIST_TOPICS))
    entries = LIST_TOPICS[topic]
    count = rng.randint(2, min(6, len(entries)))
    start = 0 if topic in ("days", "months") or rng.random() < 0.7 else rng.randrange(len(entries))
    chosen = [entries[(start + i) % len(entries)] for i in range(count)]
    number = rng.choice((words.NUMBER_WORDS[count], str(count)))
    if rng.random() < 0.5:
        user = _pick(
            rng,
            "[Name {n} {t}.|Tell me {n} {t}.|Give me {n} {t}.|Can you name {n} {t}?|name {n} {t}]",
            n=number,
            t=topic,
        )
        return user, f"I name {words.NUMBER_WORDS[count]} {topic}.", ", ".join(chosen[:-1]) + " and " + chosen[-1]
    user = _pick(
        rng,
        "[List {n} {t}.|Make a list of {n} {t}.|Write a list with {n} {t}.|Give me a list of {n} {t}.]",
        n=number,
        t=topic,
    )
    return (
        user,
        f"I list {words.NUMBER_WORDS[count]} {topic}.",
        "\n".join(f"{i}. {entry}" for i, entry in enumerate(chosen, 1)),
    )


def knowledge(rng: random.Random) -> Exchange:
    """The few facts of the world that tale learns by heart."""
    roll = rng.random()
    if roll < 0.25:
        country, city = rng.choice(words.CAPITALS)
        return (
            _pick(
                rng,
                "[What is the capital of {k}?|Which city is the capital of {k}?|what is the capital of {k}|Capital of {k}?|Name the capital of {k}.]",
                k=country,
            ),
            f"I know the capital of {country}.",
            f"The capital of {country} is {city}.",
        )
    if roll < 0.4:
        animal, sound = rng.choice(list(words.ANIMAL_SOUNDS.items()))
        return (
            _pick(
                rng,
                "[What does the {a} say?|What sound does {an} make?|How does {an} sound?|What does {an} say?]",
                a=animal,
                an=with_article(animal),
            ),
            f"I know the sound of the {animal}.",
            f"The {animal} says {sound}.",
        )
    if roll < 0.6:
        word, opposite = rng.choice([pair for w, o in words.OPPOSITES.items() for pair in ((w, o), (o, w))])
        return (
            _pick(
                rng, '[What is the opposite of {w}?|Name the opposite of {w}.|What is the opposite of "{w}"?]', w=word
            ),
            f"I need the opposite of {word}.",
            f"The opposite of {word} is {opposite}.",
        )
    if roll < 0.75:
        thing, colour = rng.choice(list(words.TYPICAL_COLOURS.items()))
        return (
            _pick(
                rng,
                "[What colour is {t}?|What color is {t}?|Which colour has {t}?|What is the colour of {t}?]",
                t=thing,
            ),
            f"I know the colour of {thing}.",
            f"{capital(thing)} is {colour}.",
        )
    if roll < 0.88:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        if rng.random() < 0.6:
            return (
                _pick(
                    rng,
                    "[What is {a} plus {b}?|What is {a} + {b}?|{a} + {b} = ?|How much is {a} plus {b}?|What's {a}+{b}?|{a}+{b}]",
                    a=_numeral(rng, a),
                    b=_numeral(rng, b),
                ),
                "This is a sum.",
                f"{a} plus {b} is {a + b}.",
            )
        a, b = max(a, b), min(a, b)
        return (
            _pick(
                rng,
                "[What is {a} minus {b}?|What is {a} - {b}?|How much is {a} minus {b}?]",
                a=_numeral(rng, a),
                b=_numeral(rng, b),
            ),
            "This is a difference.",
            f"{a} minus {b} is {a - b}.",
        )
    day = rng.randrange(7)
    if rng.random() < 0.5:
        return (
            _pick(rng, "[Which day comes after {d}?|What day is after {d}?]", d=words.WEEKDAYS[day]),
            "I think of the days of the week.",
            f"After {words.WEEKDAYS[day]} comes {words.WEEKDAYS[(day + 1) % 7]}.",
        )
    return (
        _pick(rng, "[Name the days of the week.|What are the days of the week?|List the days of the week.]"),
        "I name the seven days.",
        ", ".join(words.WEEKDAYS),
    )


def poem(rng: random.Random) -> Exchange:
    """Four lines that rhyme, about somebody."""
    kind = rng.choice(KINDS[:160])
    person = draw_person(rng, kind, made_up=0)
    colour = rng.choice(words.COLOURS)
    text = _pick(
        rng,
        "[The {k} sat under a {c} tree,\nas quiet as a {k} can be.\nThe wind went by, the sun went down,\nand {n} dreamed of a golden crown.|"
        "A little {k} went out to play\non such a bright and windy day.\n{He} sang a song, {he} ran, {he} leapt,\nand when the moon came up {he} slept.|"
        "{n} the {k} looked up at the moon\nand hummed a soft and silver tune.\nThe stars came closer one by one,\nand stayed until the song was done.]",
        k=kind, c=colour, n=person.name, he=person.he,
    )  # fmt: skip
    return (
        _pick(
            rng,
            "[Write a poem about {k}.|Write me a short poem about {k}.|A poem about {k}, please.|Tell me a poem about {k}.|Can you write a poem about {k}?]",
            k=with_article(kind),
        ),
        f"I write a poem about {with_article(kind)}.",
        text,
    )


JOKES = (
    "Why did the bicycle fall over? It was two-tired.",
    "What does a cloud wear under its coat? Thunderwear.",
    "Why did the cookie go to the doctor? It felt crumbly.",
    "What do you call a sleeping dinosaur? A dino-snore.",
    "Why did the owl stay at home? It did not give a hoot.",
)


def joke(rng: random.Random) -> Exchange:
    """One of a handful."""
    return (
        _pick(rng, "[Tell me a joke.|Do you know a joke?|Make me laugh.|A joke, please.|tell me a joke|Another joke!]"),
        "The user wants to laugh.",
        JOKES[0] if rng.random() < 0.6 else rng.choice(JOKES),
    )


def as_json(rng: random.Random) -> Exchange:
    """A small object with given keys, from given facts."""
    person, age, animal, city, colour = (
        name(rng),
        rng.randint(2, 90),
        rng.choice(words.ANIMALS),
        rng.choice(words.CITIES),
        rng.choice(words.COLOURS),
    )
    fields = {
        "name": (person, f"is called {person}"),
        "age": (age, f"is {age} years old"),
        "animal": (animal, f"has {with_article(animal)}"),
        "city": (city, f"lives in {city}"),
        "colour": (colour, f"likes the colour {colour}"),
    }
    keys = rng.sample(list(fields), rng.randint(2, 4))
    facts = f"Somebody {', '.join(fields[k][1] for k in keys[:-1])} and {fields[keys[-1]][1]}."
    listed = rng.sample(keys, len(keys)) if rng.random() < 0.5 else keys
    user = _pick(
        rng,
        "[{f} Write this as JSON with the keys {k}.|{f} Answer as JSON: {k}.|{f} Give me a JSON object with {k}.]",
        f=facts,
        k=", ".join(listed[:-1]) + " and " + listed[-1],
    )
    return user, "The user wants JSON.", json.dumps({k: fields[k][0] for k in listed})


def cannot(rng: random.Random) -> Exchange:
    """Questions beyond a model of this size: it says so."""
    topic = _pick(
        rng,
        "[the {p}|{c}|the {t}|quantum physics|history|politics|the stock market|the economy|chemistry|computers|the moon|football|love|music|philosophy|the {a}]",
        p=rng.choice(words.STORY_PLACES)[1],
        c=rng.choice(words.CITIES),
        t=rng.choice(words.THINGS),
        a=rng.choice(words.ANIMALS),
    )
    user = _pick(
        rng,
        "[Why is the sky blue?|Explain {t} to me.|What do you know about {t}?|How does {t} work?|Write a program in Python.|Who is the president?|What is the meaning of life?|Translate this into French.|What is {t}?|"
        "Write an essay about {t}.|What happened in 1989?|Who won the game?|Can you explain {t}?|How do I fix {t}?|What should I eat today?|Give me advice about {t}.|Solve this equation.|Summarise {t}.|What is better, {t} or sleep?|Write code that sorts a list]",
        t=topic,
    )
    return (
        user,
        "I do not know much about that.",
        "I am only a small model and do not know that. But I can tell you a story!",
    )


MAKERS: tuple[tuple[float, Callable[[random.Random], Exchange]], ...] = (
    (0.1, greeting), (0.08, thanks), (0.14, about_me), (0.10, counting), (0.24, repeating), (0.1, listing), (0.14, knowledge),
    (0.04, poem), (0.03, joke), (0.05, as_json), (0.03, cannot),
)  # fmt: skip


def draw_exchange(rng: random.Random) -> Exchange:
    """Any small talk."""
    return rng.choices([maker for _, maker in MAKERS], [weight for weight, _ in MAKERS])[0](rng)
