"""The small world of eagle-tiny: its words, sentences and facts, and the one rule for what is training and what is test.

Everything eagle-tiny hears, reads and answers is made of `WORDS`. No two of them sound alike, so a transcript has
one right spelling (hence no "to" beside "two", no "for" beside "four").
"""

import hashlib
import json
import random


def _words(text):
    return tuple(text.split())


def lines(text: str) -> tuple[str, ...]:
    """Read a table: one entry a line, indentation dropped."""
    return tuple(line.strip() for line in text.strip().splitlines())


def _rows(text):
    return tuple(_words(line) for line in lines(text))


COLOURS = _words("red green blue yellow purple orange black white pink brown grey silver golden")

SHAPES = _words("circle square triangle star cross oval diamond heart arrow")

ANIMALS = _words("""
    cat dog horse cow pig sheep goat duck goose chicken rabbit mouse fox wolf bear lion tiger monkey elephant donkey
    snake frog turtle fish shark dolphin spider bird eagle owl penguin zebra giraffe
""")

FOODS = _words("""
    apple banana cherry lemon peach pear grape strawberry tomato potato carrot onion pepper pumpkin corn rice bread
    butter cheese egg milk cream honey sugar salt soup salad pasta pizza sandwich burger ham cake cookie chocolate pie
    coffee tea juice water food
""")

ROOMS = _words("kitchen bedroom bathroom lounge hallway garage garden attic cellar office balcony pantry studio")

PLACES = _words("""
    school hospital bank market museum library station airport harbour bridge church castle palace tower park zoo beach
    island forest mountain valley river lake farm village city street bakery pharmacy restaurant hotel cinema theatre
    factory shop pool hill town room
""")

OBJECTS = _words("""
    table chair sofa bed desk cupboard lamp candle mirror clock window door wall roof carpet pillow towel basket box bag
    bottle glass cup plate bowl fork knife spoon kettle oven fridge toaster television radio telephone camera computer
    keyboard screen battery button key hammer nail bicycle car bus train truck plane boat ship taxi balloon ball toy
    guitar piano drum violin book paper pencil pen ruler letter stamp map ticket coin wallet umbrella hat coat jacket
    shirt dress sock shoe glove ring helmet tent bell flag picture newspaper notebook heater fan
""")

NATURE = _words("sun moon sky rain snow wind storm thunder fog tree flower grass rose stone sand fire ocean weather")

WEATHER = _words("sunny cloudy rainy snowy windy foggy stormy warm cold hot cool wet dry")

PEOPLE = _words("""
    man woman boy girl child baby mother father sister brother uncle grandmother friend neighbour teacher doctor nurse
    farmer baker barber driver pilot sailor painter singer dancer lawyer dentist engineer mechanic carpenter gardener
    waiter captain king queen student
""")

BODY = _words("head face eye nose mouth arm hand finger knee foot hair")

VERBS = _words("""
    open close push pull carry bring take buy sell wash clean paint cut build find hold throw catch drop move keep send
    choose want need like love watch help meet follow visit call ask teach eat drink cook touch cover count order play
    start stop finish remember forget give get put make see let heat change
""")

MOTIONS = _words("""
    walk run jump swim fly sing dance sleep wake laugh cry smile talk listen wait sit stand fall ride sail drive rest
    arrive leave travel go come
""")

PAST_VERBS = _words("""
    opened closed pushed carried brought took bought sold washed cleaned broke painted built found held caught moved
    wanted loved watched followed visited drank played forgot
""")

PAST_MOTIONS = _words("walked ran jumped flew sang slept laughed cried smiled waited sat stood fell arrived")

ADJECTIVES = _words("""
    big small large huge tall short long high low deep heavy light dark bright loud quiet fast slow new old young fresh
    dirty empty full broken strong hard soft smooth sharp round straight wooden metal happy sad angry tired hungry
    thirsty sick healthy clever brave shy kind rude lazy busy funny proud calm friendly lonely famous strange cheap
    expensive beautiful bad good better best perfect wrong true false safe dangerous early late ready favourite sweet
    sour delicious frozen ancient
""")

ADVERBS = _words("""
    very always never often sometimes usually soon again once twice now then today tomorrow yesterday tonight slowly
    quickly quietly carefully suddenly almost together everywhere away home maybe
""")

POSITIONS = _words("""
    in on at under over above below behind beside between near inside outside around into from with before after during
    against down off left right top middle up bottom corner
""")

FUNCTION_WORDS = _words("""
    the this that my your his her he she it we you who what when where which why how much many some every each all most
    more less few other another same different and but if not yes please thanks of also only just there here is are was
    were has have had do does did can will would should must be me them or as than because hello goodbye something
    everything nothing nobody
""")

NUMBERS = _words("""
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty
""")

LARGE_NUMBERS = _words("zero thirty forty fifty sixty seventy eighty ninety hundred first third last")

TIMES = _words("""
    second minute hour day week month year morning afternoon evening noon night monday tuesday wednesday thursday friday
    saturday sunday january february march april june july august september october november december spring summer
    autumn winter past
""")

PLURALS = _words("""
    circles squares triangles stars crosses coins minutes hours days degrees books cats dogs birds flowers apples people
""")

TALK = _words("""
    tell say show explain know live lives work works lie lies stay costs cost price pay worth opens closes colour shape
    number word sign chart value bar highest lowest name place thing time date job question answer person about likes
    loves next way plus needs far enough
""")

HOUSE = _words("""
    turn set switch dim lock unlock raise lower add remove create cancel search translate record check volume
    temperature percent level reminder message music song news contact meeting list shopping note alarm timer channel
    language forecast photo video blinds vacuum robot appointment mode address english german french spanish
""")

NAMES = _words("""
    anna peter maria david laura oliver emma lucas sofia daniel julia martin clara simon nina victor alice felix helen
    robert paula thomas sarah george oscar rachel samuel carmen hugo ruth
""")

TOWNS = _words("""
    norvale easton riverton oakford milbrook ashfield westport kingsbury sandhill maplewood brightwater stonebridge
    fairview greendale lakeside silverton highgate rosewood winterton foxley
""")

WORDS = (
    *COLOURS, *SHAPES, *ANIMALS, *FOODS, *ROOMS, *PLACES, *OBJECTS, *NATURE, *WEATHER, *PEOPLE, *BODY, *VERBS, *MOTIONS,
    *PAST_VERBS, *PAST_MOTIONS, *ADJECTIVES, *ADVERBS, *POSITIONS, *FUNCTION_WORDS, *NUMBERS, *LARGE_NUMBERS, *TIMES,
    *PLURALS, *TALK, *HOUSE, *NAMES, *TOWNS,
)

TEST_PERCENT = 10
HELD_OUT_EVERY = 4  # every fourth phrasing of a relation or a function is never seen in training


def split(kind: str, *values) -> str:
    """Say whether a combination belongs to "train" or to "test": the only place in the project that decides this.

    `kind` names what is split ("words", "code", "chart", "scene", "clip", "sentence", "phrasing", ...); `values` are
    strings, numbers or nested lists of them, and their order counts. One combination in ten is test, by SHA-256. For
    "phrasing" the values are (relation or function, index) and every fourth index is test, so each relation has some.
    """
    if kind == "phrasing":
        return "test" if values[-1] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else "train"
    digest = hashlib.sha256(json.dumps([kind, *values]).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 100 < TEST_PERCENT else "train"


LOOSE = 0.4  # share of sentences that are words in no order: every word is heard, and none can be guessed
SLOTS = {
    "COLOUR": COLOURS, "SHAPE": SHAPES, "ANIMAL": ANIMALS, "FOOD": FOODS, "ROOM": ROOMS, "PLACE": PLACES,
    "OBJECT": OBJECTS, "NATURE": NATURE, "WEATHER": WEATHER, "PERSON": PEOPLE, "BODY": BODY, "VERB": VERBS,
    "MOTION": MOTIONS, "PASTVERB": PAST_VERBS, "PASTMOTION": PAST_MOTIONS, "ADJECTIVE": ADJECTIVES, "ADVERB": ADVERBS,
    "POSITION": POSITIONS, "NUMBER": NUMBERS[1:], "TIME": TIMES, "PLURAL": PLURALS, "NAME": NAMES, "TOWN": TOWNS,
}  # fmt: skip
TEMPLATES = lines("""
    VERB the OBJECT
    some ADJECTIVE ANIMAL PASTMOTION
    NAME PASTMOTION ADVERB
    ADVERB the PERSON PASTMOTION
    the PERSON PASTMOTION POSITION the PLACE
    the ADJECTIVE PERSON PASTMOTION in the ROOM
    the ADJECTIVE PERSON PASTVERB the COLOUR OBJECT
    NAME PASTVERB the ADJECTIVE OBJECT in TOWN
    my PERSON PASTVERB some FOOD and the OBJECT
    his PERSON ADVERB PASTVERB the OBJECT
    her PERSON and the ANIMAL PASTMOTION together
    the COLOUR SHAPE is POSITION the COLOUR SHAPE
    the COLOUR OBJECT is ADJECTIVE and ADJECTIVE
    there are NUMBER PLURAL in the ROOM
    there were NUMBER ADJECTIVE PLURAL near the PLACE
    NUMBER PLURAL and NUMBER PLURAL POSITION the OBJECT
    it was WEATHER and WEATHER in TOWN
    it is WEATHER and ADJECTIVE this TIME
    the PERSON and the COLOUR ANIMAL PASTMOTION POSITION the PLACE
    the NATURE in TOWN is COLOUR
    the NATURE POSITION the PLACE is ADJECTIVE
    NAME will MOTION POSITION the PLACE at NUMBER
    NAME and NAME can MOTION ADVERB
    we should VERB the FOOD before TIME
    you must not VERB that OBJECT
    please VERB the OBJECT and MOTION
    please VERB my COLOUR OBJECT in the ROOM
    VERB the FOOD and the FOOD
    VERB the ADJECTIVE OBJECT ADVERB
    can you VERB the ADJECTIVE ANIMAL
    do not VERB the PERSON this TIME
    would you MOTION with the PERSON
    why did the PERSON VERB the OBJECT
    where is the ADJECTIVE COLOUR OBJECT
    how many ADJECTIVE PLURAL has NAME
    what is POSITION the BODY of NAME
    who PASTVERB the FOOD in the PLACE
    the BODY of the ANIMAL was COLOUR
    his BODY and his BODY were ADJECTIVE
    every PERSON in TOWN has NUMBER PLURAL
    the FOOD costs NUMBER coins in TOWN
    NAME is the ADJECTIVE PERSON of TOWN
    on TIME the PLACE in TOWN is ADJECTIVE
    another ADJECTIVE ANIMAL PASTMOTION into the ROOM
    the PERSON from TOWN PASTVERB NUMBER ADJECTIVE PLURAL
    she PASTVERB the OBJECT but he PASTVERB the FOOD
    if it is WEATHER we MOTION in the PLACE
    NAME PASTVERB NUMBER PLURAL and the ADJECTIVE COLOUR OBJECT
""")


def sentence(rng: random.Random, part: str) -> str:
    """Draw a spoken sentence of 3 to 10 words, lower case and unpunctuated, that belongs to "train" or to "test"."""
    while True:
        if rng.random() < LOOSE:
            words = [rng.choice(WORDS) for _ in range(rng.randint(3, 10))]
        else:
            words = [rng.choice(SLOTS[word]) if word in SLOTS else word for word in rng.choice(TEMPLATES).split()]
        text = " ".join(words)
        if split("sentence", text) == part:
            return text


# Who lives in which town, works as what, likes which food most.
RESIDENTS = _rows("""
    anna riverton baker pizza
    peter oakford teacher soup
    maria westport doctor cake
    david norvale farmer bread
    laura easton nurse salad
    oliver milbrook pilot pasta
    emma ashfield singer chocolate
    lucas kingsbury driver cheese
    sofia sandhill dentist strawberry
    daniel maplewood painter burger
    julia brightwater lawyer rice
    martin stonebridge carpenter potato
    clara fairview dancer peach
    simon greendale mechanic ham
    nina lakeside sailor fish
    victor silverton engineer pie
    alice highgate gardener apple
    felix rosewood waiter sandwich
    helen winterton captain cherry
    robert foxley barber corn
    paula riverton student cookie
    thomas westport farmer egg
    sarah oakford pilot honey
    george easton painter tomato
    oscar norvale nurse banana
    rachel ashfield driver lemon
    samuel sandhill baker grape
    carmen lakeside teacher pear
    hugo silverton singer carrot
    ruth fairview doctor juice
""")

# When a place opens and closes.
PLACE_HOURS = _rows("""
    bakery five two
    bank nine four
    market six one
    museum ten seven
    library eight nine
    station four twelve
    airport three eleven
    castle eleven five
    palace twelve six
    tower nine three
    park seven ten
    zoo eight six
    pharmacy ten eight
    restaurant twelve eleven
    hotel six ten
    cinema two twelve
    theatre five eleven
    factory seven four
    shop nine seven
    pool eleven eight
""")

# What a thing in the shop costs, in coins.
PRICES = _rows("""
    bread three
    cheese seven
    coffee four
    tea two
    milk five
    cake eleven
    soup six
    pizza ten
    salad eight
    sandwich nine
    honey thirteen
    chocolate twelve
    kettle twenty
    pencil two
    notebook five
    newspaper three
    ticket fourteen
    map six
    candle four
    towel fifteen
    plate seven
    knife sixteen
    spoon eight
    hammer seventeen
    ball nine
    basket ten
    battery eleven
    sock thirteen
    helmet nineteen
    radio eighteen
""")

# The colour of a thing at home, and the room it lies in.
BELONGINGS = _rows("""
    bicycle red garage
    lamp green bedroom
    sofa blue lounge
    umbrella yellow hallway
    hat purple attic
    ball orange garden
    guitar black studio
    fridge white kitchen
    pillow pink bedroom
    table brown lounge
    computer grey office
    key silver hallway
    ring golden bathroom
    coat blue cellar
    towel red bathroom
    chair green balcony
    book black office
    bowl yellow pantry
    piano white studio
    toy brown garage
""")


def _facts():
    for name, town, job, food in RESIDENTS:
        yield from ((name, "town", f"in {town}"), (name, "job", job), (name, "food", food))
    for place, opens, closes in PLACE_HOURS:
        yield from ((place, "opens", f"at {opens}"), (place, "closes", f"at {closes}"))
    for thing, coins in PRICES:
        yield thing, "price", f"{coins} coins"
    for thing, colour, room in BELONGINGS:
        yield from ((thing, "colour", colour), (thing, "room", f"in the {room}"))


FACTS = tuple(_facts())  # (subject, relation, value); the value is the spoken answer

# Every fourth line of a relation is held out (see `split`); its key words stand in the other lines too.
PHRASINGS = {
    "town": lines("""
        where does {} live
        in which town does {} live
        which town does {} live in
        tell me where {} lives
        please tell me the town where {} lives
        what is the home town of {}
        do you know where {} lives
        can you tell me which town {} lives in
        where is the home of {}
        what town does {} call home
        say in which town {} lives
        please tell me the home town of {}
    """),
    "job": lines("""
        what is the job of {}
        what work does {} do
        which job does {} have
        tell me the job of {}
        tell me what work {} does
        what does {} do at work
        do you know the job of {}
        please tell me which job {} has
        what does {} work as
        say what job {} has
        which work does {} do every day
        do you know what work {} does
    """),
    "food": lines("""
        what is the favourite food of {}
        which food does {} like most
        what food does {} love
        tell me the favourite food of {}
        what does {} like best
        tell me which food {} loves
        do you know the favourite food of {}
        what food does {} like best
        say which food {} likes most
        what would {} eat first
        which food would {} choose first
        please tell me what food {} loves most
    """),
    "opens": lines("""
        when does the {} open
        at what time does the {} open
        what time will the {} open
        tell me when the {} opens
        please tell me the time when the {} opens
        how early does the {} open
        when will the {} open today
        do you know when the {} opens
        say when the {} opens
        can you tell me at what time the {} opens
        at which hour does the {} open
        please tell me at what time the {} opens
    """),
    "closes": lines("""
        when does the {} close
        at what time does the {} close
        what time will the {} close
        tell me when the {} closes
        please tell me the time when the {} closes
        how late does the {} close
        when will the {} close today
        do you know when the {} closes
        say when the {} closes
        can you tell me at what time the {} closes
        at which hour does the {} close
        please tell me at what time the {} closes
    """),
    "price": lines("""
        what does the {} cost
        how much is the {}
        what is the price of the {}
        tell me the price of the {}
        how much does the {} cost
        tell me what the {} costs
        how many coins is the {}
        how many coins does the {} cost
        how much must we pay for the {}
        do you know the price of the {}
        how much is the {} worth
        how much is the {} please
    """),
    "colour": lines("""
        what colour is the {}
        which colour does the {} have
        what is the colour of the {}
        tell me the colour of the {}
        please tell me which colour the {} has
        do you know the colour of the {}
        say what colour the {} is
        what colour does the {} have
        in what colour is the {} painted
        can you tell me what colour the {} is
        which colour has the {}
        tell me what colour the {} is
    """),
    "room": lines("""
        where is the {}
        in which room is the {}
        where can we find the {}
        tell me where the {} is
        where does the {} lie
        which room is the {} in
        do you know where the {} lies
        in which room can we find the {}
        say in which room the {} lies
        please tell me where we find the {}
        in what room does the {} lie
        do you know which room the {} is in
    """),
}


def question(fact: tuple[str, str, str], phrasing: int) -> str:
    """Ask for a fact's value in its relation's phrasing of that number (0 to 11): "what does the lamp cost"."""
    subject, relation, _ = fact
    return PHRASINGS[relation][phrasing].format(subject)


def fact_question(rng: random.Random, part: str) -> tuple[str, str]:
    """Draw a fact; return its question in a phrasing that belongs to "train" or to "test", and its answer."""
    fact = rng.choice(FACTS)
    _, relation, value = fact
    phrasings = [index for index in range(len(PHRASINGS[relation])) if split("phrasing", relation, index) == part]
    return question(fact, rng.choice(phrasings)), value


TENS = _words("zero ten twenty thirty forty fifty sixty seventy eighty ninety")


def spell(number: int) -> str:
    """Say a whole number from 0 to 100 in words of the world: 42 -> "forty two"."""
    if not 0 <= number <= 100:
        raise ValueError(f"cannot spell {number}: the small world counts from 0 to 100")
    if number == 100:
        return "one hundred"
    if number < 20:
        return ("zero", *NUMBERS)[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] if ones == 0 else f"{TENS[tens]} {NUMBERS[ones - 1]}"


PROPER = {*NAMES, *TOWNS, *TIMES[TIMES.index("monday") : TIMES.index("december") + 1]}
PROPER |= {"english", "german", "french", "spanish"}
ASKING = _words("what when where which who why how do does did is are was were can will would should")


def written(text: str) -> str:
    """Write a spoken question or request as people write: "where does anna live" -> "Where does Anna live?"."""
    words = text.split()
    first, second = words[0], words[1] if len(words) > 1 else ""
    asks = (first in ASKING and second != "not") or (first in ("at", "in", "on") and second in ASKING)
    words = [word.capitalize() if word in PROPER else word for word in words]
    return " ".join([words[0].capitalize(), *words[1:]]) + ("?" if asks else ".")
