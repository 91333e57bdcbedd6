"""Stories with their worlds: who, where, what; and the requests and questions that belong to them.

`draw_world` fixes the facts, `tell` writes the text from them, `questions` asks about them: text and answers come from
the same world, so they cannot disagree.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tools.tale import vocabulary as words
from tools.tale.grammar import NUM_TASTES, capital, expand, favoured, stable_hash, with_article
from tools.tale.plots import BUILDINGS, ENDINGS, FEARS, MORALS, OPENINGS, PLOTS, SKILLS, Plot

KINDS = words.ANIMALS + words.PEOPLE + words.CREATURES + words.OBJECT_HEROES
_FEMALE_KINDS = frozenset(
    ["girl", "queen", "princess", "nurse", "witch", "grandmother", "fairy", "mermaid", "hen", "doll", "cow"]
)
_MALE_KINDS = frozenset(
    ["boy", "king", "prince", "wizard", "grandfather", "fisherman", "postman", "rooster", "monk", "snowman"]
)


def made_up_word(rng: random.Random) -> str:
    """A word of two or three syllables that is in no list, so that the model learns to copy and not only to recall."""
    syllables = "".join(rng.choice(words.SYLLABLES) for _ in range(rng.choice((2, 2, 3))))
    return syllables + (rng.choice(words.WORD_ENDINGS) if rng.random() < 0.5 else "")


def any_name(rng: random.Random, *, made_up: float = 0.2) -> str:
    """Any name, each as likely as the others."""
    if rng.random() < made_up:
        return capital(made_up_word(rng))
    return rng.choice(words.FEMALE_NAMES if rng.random() < 0.5 else words.MALE_NAMES)


def draw_person(rng: random.Random, kind: str = "", *, made_up: float = 0.08) -> words.Person:
    """A name and its pronouns; `kind` (such as "queen") settles the pronouns and has a favourite name."""
    if kind in _FEMALE_KINDS:
        female = True
    elif kind in _MALE_KINDS:
        female = False
    else:
        female = favoured(rng, (True, False), "gender " + kind)
    if rng.random() < made_up:
        name = capital(made_up_word(rng))
    else:
        name = favoured(rng, words.FEMALE_NAMES if female else words.MALE_NAMES, "name " + kind)
    return words.Person(name, "she", "her", "her") if female else words.Person(name, "he", "him", "his")


def with_pronouns(name: str) -> words.Person:
    """A given name with its pronouns; a name that nobody knows is judged by its last letter."""
    female = name in words.FEMALE_NAMES or (name not in words.MALE_NAMES and name[-1] in "aeiy")
    return words.Person(name, "she", "her", "her") if female else words.Person(name, "he", "him", "his")


@dataclass(frozen=True)
class Request:
    """What the user asks a story to contain; an empty string leaves it open."""

    kind: str = ""
    name: str = ""
    friend_kind: str = ""
    friend_name: str = ""
    thing: str = ""
    colour: str = ""
    place: str = ""
    mood: str = ""
    short: bool = False
    long: bool = False


@dataclass(frozen=True)
class Story:
    """A told story, its request, and the slots from which it was told."""

    request: Request
    plot: Plot
    world: dict[str, str] = field(repr=False)
    text: str
    second_plot: Plot | None = None


def draw_request(rng: random.Random) -> Request:
    """What a user may ask for: nearly always a hero, sometimes more."""
    kind = name = friend_kind = friend_name = thing = colour = place = mood = ""
    roll = rng.random()
    if roll < 0.93:
        kind = draw_kind(rng)
    if roll > 0.80:
        name = any_name(rng, made_up=0.3)
    if rng.random() < 0.15:
        friend_kind = draw_kind(rng, besides=kind)
    elif name and rng.random() < 0.3:
        friend_name = any_name(rng, made_up=0.2)
        friend_name = "" if friend_name == name else friend_name
    if rng.random() < 0.18:
        thing = made_up_word(rng) if rng.random() < 0.05 else rng.choice(words.THINGS)
        if rng.random() < 0.4:
            colour = rng.choice(words.COLOURS)
    if rng.random() < 0.12:
        place = rng.choice(words.STORY_PLACES)[1]
    if rng.random() < 0.15:
        mood = rng.choice([m for m in ENDINGS if m])
    length = rng.random()
    return Request(
        kind, name, friend_kind, friend_name, thing, colour, place, mood, short=length < 0.1, long=length > 0.95
    )


def draw_kind(rng: random.Random, besides: str = "") -> str:
    """A kind of hero, animals most often; now and then a word nobody knows."""
    while True:
        roll = rng.random()
        if roll < 0.05:
            kind = made_up_word(rng)
        elif roll < 0.55:
            kind = rng.choice(words.ANIMALS)
        else:
            kind = rng.choice(KINDS)
        if kind != besides:
            return kind


def draw_world(rng: random.Random, request: Request) -> dict[str, str]:
    """Fill every slot: what the request names as named, the rest by the hero's taste."""
    kind = request.kind or favoured(rng, ("fox", "mouse", "girl", "bear"), request.name + request.thing)
    taste = kind
    person = draw_person(rng, kind)
    if request.name:
        person = with_pronouns(request.name)
    friend_kind = request.friend_kind
    while not friend_kind or friend_kind == kind:
        friend_kind = favoured(rng, words.ANIMALS, "friend " + taste, 0.6)
        if friend_kind == kind:
            friend_kind = rng.choice(words.ANIMALS)
    friend = draw_person(rng, friend_kind)
    if request.friend_name:
        friend = with_pronouns(request.friend_name)
    while friend.name == person.name:
        friend = draw_person(rng)
    colour = request.colour or favoured(rng, words.COLOURS, "colour " + taste)
    thing = request.thing or favoured(rng, words.THINGS, "thing " + taste)
    if request.place:
        preposition, place_noun = next(p for p in words.STORY_PLACES if p[1] == request.place)
    else:
        preposition, place_noun = favoured(rng, words.STORY_PLACES, "place " + taste)
    place_adjective = favoured(rng, words.PLACE_ADJECTIVES, "place " + place_noun)
    adjective = favoured(rng, words.ADJECTIVES, "adjective " + taste)
    place = f"{preposition} {with_article(f'{place_adjective} {place_noun}')}"
    coloured = f"{colour} {thing}"
    return {
        "hero": person.name, "he": person.he, "him": person.him, "his": person.his, "kind": kind, "a_kind": with_article(kind),
        "adj": adjective, "a_adj": with_article(adjective), "friend": friend.name, "fkind": friend_kind,
        "a_fkind": with_article(friend_kind), "fhe": friend.he, "fhim": friend.him, "fhis": friend.his, "thing": thing,
        "colour": colour, "cthing": coloured, "a_cthing": with_article(coloured), "place": place, "place_comma": place + ",",
        "placenoun": place_noun, "spot": favoured(rng, words.STORY_SPOTS, "spot " + taste),
        "food": favoured(rng, words.STORY_FOODS, "food " + taste), "baked": favoured(rng, words.BAKED, "baked " + taste),
        "weather": favoured(rng, words.WEATHERS, "weather " + taste), "daytime": favoured(rng, words.DAYTIMES, "time " + taste),
        "skill": favoured(rng, SKILLS, "skill " + taste), "fear": favoured(rng, FEARS, "fear " + taste),
        "building": favoured(rng, BUILDINGS, "building " + taste),
    }  # fmt: skip


def tell(rng: random.Random, request: Request, world: dict[str, str] | None = None) -> Story:
    """Tell a story that obeys `request`."""
    if world is None:
        world = draw_world(rng, request)
    taste = stable_hash("taste " + world["kind"]) % NUM_TASTES
    plot = favoured(rng, PLOTS, "plot " + world["kind"])
    ending = expand(ENDINGS[request.mood], world, rng, taste)
    if request.short:
        opening = expand("There was once {a_adj} {kind} called {hero}, who lived {place}.", world, rng)
        return Story(request, plot, world, f"{opening} {expand(plot.short, world, rng, taste)}")
    opening = expand(OPENINGS, world, rng, taste)
    paragraphs = [opening, expand(plot.text, world, rng, taste)]
    second = None
    if request.long:
        second = PLOTS[(PLOTS.index(plot) + 1 + stable_hash(world["kind"]) % (len(PLOTS) - 1)) % len(PLOTS)]
        paragraphs += ["But that was not the end.", expand(second.text, world, rng, taste)]
    paragraphs.append(ending)
    return Story(request, plot, world, "\n\n".join(_join(paragraphs)), second)


def go_on(rng: random.Random, story: Story) -> str:
    """The next day of the same hero, as its own text."""
    taste = stable_hash("taste " + story.world["kind"]) % NUM_TASTES
    plot = PLOTS[(PLOTS.index(story.plot) + 1 + stable_hash(story.world["kind"]) % (len(PLOTS) - 1)) % len(PLOTS)]
    return f"But that was not the end. {expand(plot.text, story.world, rng, taste)}\n\n{expand(ENDINGS[''], story.world, rng, taste)}"


def _join(paragraphs: list[str]) -> list[str]:
    """Put a one-sentence bridge in front of the paragraph that follows it."""
    joined: list[str] = []
    for paragraph in paragraphs:
        if joined and joined[-1].endswith("not the end."):
            joined[-1] += " " + paragraph
        else:
            joined.append(paragraph)
    return joined


def ask_for(rng: random.Random, request: Request) -> str:
    """The request in words, in one of many phrasings, sometimes in lower case and without punctuation."""
    size = rng.choice(("very short ", "short ", "tiny ")) if request.short else "long " if request.long else ""
    if not request.short and not request.long and rng.random() < 0.12:
        size = rng.choice(("little ", "nice ", "new "))
    mood = {"bedtime": "bedtime "}.get(request.mood, request.mood + " " if request.mood else "")
    story = with_article(f"{size}{mood}{rng.choice(('story', 'story', 'story', 'tale', 'fairy tale'))}")
    about = _about(rng, request)
    if not about:
        text = expand(
            f"[Tell me {story}.|Please tell me {story}.|I want to hear {story}.|{capital(story)}, please.|Do you know {story}?|Can you tell me {story}?]",
            {}, rng,
        )  # fmt: skip
    else:
        text = expand(
            f"[Tell me {story} about {about}.|Tell me {story} about {about}.|Tell me {story} about {about}.|Write {story} about {about}.|Write me {story} about {about}.|{capital(story)} about {about}.|"
            f"Can you tell me {story} about {about}?|Please tell me {story} about {about}.|I would like to hear {story} about {about}.|Tell {story} about {about}, please.|"
            f"Do you know {story} about {about}?|{capital(about)}: tell me {story}.|Make up {story} about {about}.|Could you write {story} about {about}?|I want {story} about {about}!|"
            f"Hi! Tell me {story} about {about}.|Invent {story} about {about}]",
            {}, rng,
        )  # fmt: skip
    if request.short and rng.random() < 0.4:
        text += rng.choice(
            (" Keep it short.", " In three sentences, please.", " Only a few sentences.", " Make it short.")
        )
    if request.kind and about == with_article(request.kind) and rng.random() < 0.02:
        text = rng.choice((request.kind, about, f"{request.kind} story"))
    if rng.random() < 0.18:
        text = text.rstrip(".!?").lower() if not request.name else text.rstrip(".!?")
    return text


def _about(rng: random.Random, request: Request) -> str:
    parts = []
    if request.kind:
        noun = request.kind
        if rng.random() < 0.1:
            noun = rng.choice(words.ADJECTIVES) + " " + noun
        hero = with_article(noun) if rng.random() < 0.95 else f"the {noun}"
        if request.name:
            hero += rng.choice((" called ", " named ", " whose name is ")) + request.name
        parts.append(hero)
    elif request.name:
        parts.append(request.name)
    if request.friend_name:
        if parts[0] == request.name and rng.random() < 0.5:
            parts[0] += " and " + request.friend_name
        else:
            friend = rng.choice(("friend", "best friend"))
            parts[0] += f" and {with_pronouns(request.name).his} {friend} {request.friend_name}"
    if request.friend_kind:
        parts.append(with_article(request.friend_kind))
    if request.thing:
        parts.append(with_article(f"{request.colour} {request.thing}".strip()))
    about = parts[0] if parts else ""
    if len(parts) == 2:
        about += rng.choice((" and ", " and ", " with ")) + parts[1]
    elif len(parts) == 3:
        about += f", {parts[1]} and {parts[2]}"
    if request.place and about:
        preposition = next(p for p, noun in words.STORY_PLACES if noun == request.place)
        about += f" {preposition} {with_article(request.place)}"
    elif request.place:
        about = with_article(request.place)
    return about


GENERAL_QUESTIONS = (
    ("[What was the {kind} called?|What was the name of the {kind}?|What is the {kind}'s name?|What is the name of the hero?|Who is the story about?]", "The {kind} was called {hero}."),
    ("[Where did {hero} live?|Where did the {kind} live?|Where does the story take place?]", "{Hero} lived {place}."),
    ("[What colour was the {thing}?|What color was the {thing}?|Which colour did the {thing} have?]", "The {thing} was {colour}."),
    ("[What kind of animal was {friend}?|Who was {friend}?|Who is {friend}?]", "{Friend} was {a_fkind}."),
    ("[Who was {hero}?|Who is {hero}?|What was {hero}?]", "{Hero} was {a_adj} {kind}."),
    ("[What was {hero}'s friend called?|What was the {fkind} called?|What is the name of the {fkind}?]", "The {fkind} was called {friend}."),
)  # fmt: skip

ABSENT_QUESTIONS = (
    "[Was there {a_other} in the story?|Did the story have {a_other} in it?]",
    "No, there was no {other} in the story.",
)


def questions(rng: random.Random, story: Story, count: int) -> list[tuple[str, str]]:
    """Draw `count` different questions about a story, with their answers in full sentences."""
    pool = list(story.plot.questions) if not story.request.short else []
    if story.second_plot:
        pool = []  # two plots share their slots: a question such as "What did they find?" would be ambiguous
    if story.request.short:
        general = [GENERAL_QUESTIONS[0], GENERAL_QUESTIONS[1], GENERAL_QUESTIONS[4]]
    else:
        general = list(GENERAL_QUESTIONS)
    pool += general
    moral = MORALS.get(story.plot.name)
    if moral and not story.request.long:
        pool.append(
            ("[What can we learn from the story?|What is the moral of the story?|What does the story teach us?]", moral)
        )
    chosen = rng.sample(pool, min(count, len(pool)))
    pairs = [(expand(q, story.world, rng), expand(a, story.world, rng)) for q, a in chosen]
    if rng.random() < 0.1:
        other = rng.choice([k for k in words.ANIMALS if k not in (story.world["kind"], story.world["fkind"])])
        if other not in story.text:
            world = {"other": other, "a_other": with_article(other)}
            pairs.append((expand(ABSENT_QUESTIONS[0], world, rng), expand(ABSENT_QUESTIONS[1], world, rng)))
    return [(q.rstrip("?").lower() if rng.random() < 0.06 else q, a) for q, a in pairs]


def thought(rng: random.Random, story: Story) -> str:
    """The thought that precedes a story: whom it is about, and the idea."""
    plot = expand(story.plot.name, story.world, rng)
    return expand(f"The user wants a story about {{a_kind}}. I will tell of {{hero}} and {plot}.", story.world, rng)
