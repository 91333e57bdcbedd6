"""The words that tale's world consists of: heroes, names, places, things, weather, feelings.

Plain data for the generator, no code beyond splitting. A list is written as one string, entries divided by commas, so that it
can be read and extended like a page of text. Order matters only in that the draw of a story depends on it: append, do
not reorder, if an old seed shall keep its text.
"""

from __future__ import annotations

from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
    """Split a comma-separated block into its entries."""
    return tuple(" ".join(entry.split()) for entry in text.split(",") if entry.strip())


ANIMALS = _words("""
fox, rabbit, hare, bear, wolf, owl, mouse, hedgehog, squirrel, badger, deer, frog, toad, duck, goose, swan, hen, rooster,
cat, kitten, dog, puppy, horse, pony, donkey, cow, goat, sheep, lamb, pig, piglet, lion, tiger, leopard, elephant, giraffe,
zebra, monkey, ape, panda, koala, kangaroo, camel, llama, penguin, seal, whale, dolphin, shark, octopus, crab, lobster, snail,
turtle, tortoise, lizard, snake, crocodile, parrot, raven, crow, sparrow, robin, eagle, hawk, stork, heron, pelican, peacock,
beaver, otter, mole, bat, raccoon, skunk, moose, reindeer, yak, buffalo, hippo, rhino, ant, bee, beetle, butterfly, moth,
spider, ladybird, cricket, dragonfly, firefly, worm, caterpillar, fish, goldfish, starfish, jellyfish, seahorse, hamster, ferret,
chick, calf, cub, fawn, pigeon, dove, magpie, woodpecker, hummingbird, flamingo, ostrich, turkey, lynx, weasel, marmot, newt
""")

PEOPLE = _words("""
girl, boy, king, queen, prince, princess, knight, farmer, baker, sailor, fisherman, miller, tailor, shepherd, gardener, painter,
singer, dancer, teacher, doctor, nurse, pilot, captain, pirate, clown, juggler, wizard, witch, inventor, carpenter, blacksmith,
cook, postman, hunter, miner, grandmother, grandfather, child, woodcutter, clockmaker, astronaut, detective, librarian,
lighthouse keeper, shoemaker, beekeeper, potter, weaver, musician, magician, scientist, firefighter, mayor, guard, monk, poet
""")

CREATURES = _words("""
dragon, unicorn, fairy, elf, dwarf, giant, troll, goblin, mermaid, ghost, robot, snowman, scarecrow, phoenix, griffin, gnome,
ogre, monster, dinosaur, alien, genie, pixie, imp, sea serpent, yeti, rocking horse, teddy bear, doll, puppet, tin soldier
""")

OBJECT_HEROES = _words("""
teapot, cloud, star, moon, snowflake, raindrop, leaf, tree, flower, sunflower, pebble, stone, candle, clock, boat, train, car,
kettle, umbrella, broom, button, pencil, balloon, kite, lantern, tractor, sock, spoon, pumpkin, mushroom, acorn, apple, river
""")

FEMALE_NAMES = _words("""
Mira, Anna, Lena, Rosa, Ella, Nora, Clara, Ida, Lucy, Emma, Mia, Zoe, Ruby, Hazel, Ivy, Lily, Daisy, Poppy, Olive, Luna, Stella,
Freya, Greta, Hilda, Inga, Maja, Nina, Paula, Tilda, Vera, Wanda, Yara, Alma, Berta, Cora, Dora, Edith, Fiona, Gina, Hanna, Iris,
Jana, Kira, Lotte, Molly, Nelly, Olga, Pia, Romy, Sara, Tara, Una, Viola, Willa, Xenia, Ylva, Zelda, Amy, Bella, Carla, Dana, Elsa,
Flora, Gloria, Helen, Irma, Julia, Katie, Laura, Marta, Naomi, Petra, Rita, Sally, Tina, Ursula, Vicky, Wilma, Alice, Betty, Coco,
Dolly, Eva, Frida, Grace, Heidi, Isla, Jenny, Kathy, Linda, Maria, Nancy, Opal, Pearl, Rose, Sofia, Trudy, Violet, Winnie, Ada
""")

MALE_NAMES = _words("""
Bodo, Max, Tom, Ben, Leo, Finn, Oskar, Paul, Emil, Anton, Felix, Jonas, Hugo, Karl, Otto, Theo, Noah, Liam, Jack, Sam, Tim, Rex,
Milo, Bruno, Casper, Dino, Edgar, Fritz, Gus, Hans, Igor, Jasper, Kurt, Lars, Moritz, Nils, Ole, Piet, Quentin, Rudi, Sven, Toby,
Udo, Victor, Willi, Xaver, Yann, Zeno, Adam, Bert, Carlo, David, Erik, Frank, George, Harry, Ivan, John, Kevin, Louis, Mark, Ned,
Oliver, Peter, Ralph, Simon, Tobias, Uli, Vito, Walter, Albert, Basil, Conrad, Dario, Elias, Florian, Gregor, Henry, Ian, Jakob,
Kilian, Linus, Martin, Norbert, Oswald, Philip, Robert, Stefan, Timon, Valentin, Wendel, Arthur, Barney, Chester, Duncan, Eddie,
Fred, Gilbert, Hector, Joey, Kasimir, Lenny, Monty, Nico
""")

ADJECTIVES = _words("""
little, small, young, old, brave, shy, clever, curious, kind, gentle, merry, quiet, lazy, proud, lonely, cheerful, patient, hungry,
sleepy, friendly, careful, clumsy, dreamy, stubborn, honest, playful, tiny, wise
""")

COLOURS = _words("""
red, blue, green, yellow, white, black, brown, grey, pink, purple, orange, golden, silver, violet, turquoise, copper
""")

THINGS = _words("""
key, lamp, box, ball, hat, book, drum, flute, bell, cup, basket, coat, boot, scarf, ring, coin, kite, boat, ribbon, blanket, spoon,
bottle, mirror, clock, candle, button, feather, shell, stone, rope, ladder, wagon, lantern, whistle, map, letter, umbrella, cushion,
violin, trumpet, crown, necklace, compass, chest, jar, bowl, plate, pot, pan, bucket, broom, hammer, needle, thread, pen, brush,
glove, sock, shoe, belt, bag, sack, chair, stool, table, wheel, sword, shield, cape, mask, doll, puzzle, top, marble, flag, ticket,
stamp, envelope, notebook, pencil, ruler, comb, towel, soap, glass, vase, pillow, teapot, kettle, spade, rake, net, hook, oar,
anchor, telescope, magnet, gem, pearl, bracelet, medal, purse, suitcase, parcel, guitar, harp, bicycle, sledge, skate, balloon
""")

FOODS = _words("""
apple, pear, plum, cherry, strawberry, carrot, potato, pumpkin, cake, pie, bread, soup, cheese, honey, nut, berry, pancake, cookie,
biscuit, banana, orange, grape, tomato, bean, cabbage, melon, peach, lemon, sandwich, bun, pudding, porridge
""")

# (preposition, noun): "in a forest". The noun is what a request may name.
STORY_PLACES = tuple(
    (entry.split(" ", 1)[0], entry.split(" ", 1)[1])
    for entry in _words("""
    in forest, in village, in castle, in garden, in valley, in town, in cave, in cottage, in meadow, in jungle, in desert, in city,
    in swamp, in tower, in mill, in barn, in treehouse, in library, in lighthouse, in bakery, in palace, in burrow, in wood, in park,
    on hill, on mountain, on farm, on island, on ship, on beach, on cliff, on boat, at harbour, at school, at market, at lake,
    by river, by pond, by lake, by stream, near waterfall, near windmill, near bridge, under bridge
    """)
)

# Where a story may happen upon something: `SPOTS` without the drawers and pockets.
STORY_SPOTS = _words("""
in a hollow tree, under the old bridge, behind the mill, under a big stone, in a deep hole, behind the waterfall, in a thorn bush,
on the old tower, by the river, in a dark cave, under an oak, behind the barn, in the tall grass, at the edge of the wood, in the well,
under the stairs, in the attic, behind the church, in the mud, near the pond, under a heap of leaves, in the cellar, on a high rock
""")

STORY_FOODS = _words("""
apples, pears, plums, cherries, strawberries, carrots, nuts, berries, pancakes, cookies, bread, soup, cheese, honey, cake, porridge,
blueberry pie, roasted chestnuts, potatoes, honey cake, grapes, pumpkin soup, noodles, gingerbread, raspberries
""")
BAKED = _words("cookies, bread, cake, buns, pancakes, gingerbread, apple pie, honey cake, biscuits, muffins")

PLACE_ADJECTIVES = _words("""
quiet, green, small, big, old, dark, sunny, wide, lonely, pretty, windy, hidden, snowy, beautiful, strange, cosy
""")

# Where things lie in recall: complete phrases, so that an answer copies one piece of the prompt.
SPOTS = _words("""
in the well, under the bed, on the shelf, behind the door, in the kitchen, in the garden, under the bridge, in the barn, on the roof,
in the attic, in the cellar, under the stone, behind the curtain, on the table, in the drawer, under the carpet, in the old oak,
by the river, in the boat, on the windowsill, in the chimney, under the stairs, behind the mirror, in the cupboard, on the hill,
in the tower, in the library, at the mill, in the stable, in the cave, under the apple tree, in the mailbox, on the bench,
in the basket, behind the stove, in the hayloft, at the harbour, in the clock, under the sofa, in the bathtub, on the balcony,
behind the waterfall, in the school, in the church, in the shed, under the hat, in the teapot, on the mountain, in the forest,
at the market, in the pocket, under the pillow, in the suitcase, behind the fence, in the tent, on the ship, in the museum,
in the bakery, under the table, next to the fireplace, in the greenhouse, on the piano, in the wardrobe, at the station, near the pond
""")

WEATHERS = _words("""
sunny, rainy, windy, foggy, snowy, cold, warm, stormy, frosty, cloudy, bright, grey, misty, hot
""")
DAYTIMES = _words("morning, afternoon, evening, day")

JOBS = _words("""
baker, teacher, sailor, doctor, farmer, painter, pilot, singer, cook, gardener, tailor, carpenter, nurse, miner, writer, dentist,
shepherd, fisherman, postman, clockmaker, librarian, mechanic, lawyer, dancer, florist, plumber, judge, firefighter
""")

CITIES = _words("""
Paris, London, Berlin, Rome, Madrid, Vienna, Oslo, Tokyo, Cairo, Lima, Boston, Dublin, Prague, Lisbon, Athens, Warsaw, Budapest,
Zurich, Geneva, Milan, Venice, Naples, Hamburg, Munich, Cologne, Stockholm, Helsinki, Copenhagen, Amsterdam, Brussels, Moscow,
Istanbul, Delhi, Mumbai, Beijing, Shanghai, Seoul, Sydney, Melbourne, Toronto, Montreal, Chicago, Dallas, Denver, Seattle, Miami,
Houston, New York, San Francisco, Los Angeles, Buenos Aires, Rio de Janeiro, Cape Town, Nairobi, Lagos, Casablanca, Dubai, Tehran,
Bangkok, Hanoi, Singapore, Jakarta, Manila, Auckland, Honolulu, Reykjavik, Edinburgh, Glasgow, Manchester, Liverpool, Bristol, Lyon,
Marseille, Nice, Barcelona, Valencia, Seville, Porto, Krakow, Zagreb, Belgrade, Sofia, Bucharest, Kyiv, Riga, Tallinn, Vilnius
""")

COMMON_WORDS = _words("""
hello, hi, yes, no, ok, okay, please, sorry, good, bad, nice, cool, water, fire, wind, earth, sun, rain, snow, time, day, night, year,
week, world, house, home, door, window, street, road, school, friend, family, mother, father, sister, brother, baby, man, woman, people,
hand, foot, head, heart, eye, ear, mouth, love, peace, hope, dream, sleep, work, play, game, music, dance, song, story, word, name,
number, question, answer, test, example, computer, phone, program, data, file, code, error, banana, zebra, swordfish, umbrella, pineapple,
coffee, tea, milk, sugar, salt, pepper, butter, chocolate, vanilla, cat, dog, bird, tree, flower, grass, forest, river, sea, ocean,
mountain, island, north, south, east, west, left, right, up, down, one, two, three, hundred, thousand, million, blue, red, green,
happy, sad, angry, tired, hungry, strong, weak, fast, slow, hot, cold, big, small, new, old, young, long, short, high, low, deep,
quick brown fox, lazy dog, hello world, good morning, good night, thank you, ping, pong, foo, bar, abc, lorem ipsum, tick, tock
""")

REGIONS = _words(
    "CA, MA, TX, NY, IL, France, Germany, Italy, Spain, Japan, UK, USA, Canada, India, Brazil, Sweden, Austria"
)

CAPITALS = tuple(
    (pair.split(":")[0].strip(), pair.split(":")[1].strip())
    for pair in _words("""
    France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Austria: Vienna, Norway: Oslo, Japan: Tokyo, Egypt: Cairo,
    Peru: Lima, Ireland: Dublin, Portugal: Lisbon, Greece: Athens, Poland: Warsaw, Hungary: Budapest, Sweden: Stockholm,
    Finland: Helsinki, Denmark: Copenhagen, Belgium: Brussels, Russia: Moscow, India: New Delhi, China: Beijing, England: London,
    South Korea: Seoul, Australia: Canberra, Canada: Ottawa, Thailand: Bangkok, Kenya: Nairobi, Iceland: Reykjavik, Cuba: Havana,
    the United States: Washington, Switzerland: Bern, the Netherlands: Amsterdam
    """)
)

ANIMAL_SOUNDS = {
    "cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack", "sheep": "baa", "pig": "oink", "horse": "neigh", "owl": "hoot",
    "rooster": "cock-a-doodle-doo", "frog": "ribbit", "mouse": "squeak", "bee": "buzz", "lion": "roar", "wolf": "howl",
    "snake": "hiss", "donkey": "hee-haw", "crow": "caw", "hen": "cluck", "bear": "growl", "bird": "tweet",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "black": "white", "fast": "slow", "happy": "sad", "old": "young",
    "wet": "dry", "open": "closed", "light": "dark", "long": "short", "hard": "soft", "full": "empty", "early": "late",
    "left": "right", "good": "bad", "rich": "poor", "loud": "quiet", "high": "low", "near": "far", "strong": "weak",
    "clean": "dirty", "thick": "thin", "sweet": "sour", "first": "last", "yes": "no", "in": "out", "begin": "end", "push": "pull",
}  # fmt: skip

TYPICAL_COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "blood": "red", "a banana": "yellow", "a lemon": "yellow", "coal": "black",
    "a carrot": "orange", "the sun": "yellow", "a fox": "red", "milk": "white", "a tomato": "red", "an elephant": "grey",
    "chocolate": "brown", "a frog": "green", "the sea": "blue", "a crow": "black", "a plum": "purple", "a pig": "pink", "gold": "golden",
}  # fmt: skip

NUMBER_WORDS = _words("""
zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen, seventeen,
eighteen, nineteen, twenty
""")
WEEKDAYS = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = _words("January, February, March, April, May, June, July, August, September, October, November, December")


class Person(NamedTuple):
    """A character's name with the pronouns that go with it."""

    name: str
    he: str
    him: str
    his: str


SYLLABLES = _words("""
ba, be, bi, bo, bu, da, de, di, do, du, fa, fe, fi, fo, ga, go, gu, ha, he, hi, ja, jo, ka, ke, ki, ko, ku, la, le, li, lo, lu, ma, me,
mi, mo, mu, na, ne, ni, no, nu, pa, pe, pi, po, ra, re, ri, ro, ru, sa, se, si, so, su, ta, te, ti, to, tu, va, ve, vi, wa, we, za, ze, zo,
bla, bri, cra, dre, fla, gri, kno, plo, sha, sni, spo, tri, tro, wim, zun
""")
WORD_ENDINGS = _words("n, r, l, s, t, x, ck, m, mp, rf, ng, sh, nd, lf")
