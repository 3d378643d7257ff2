"""The small world of eagle-tiny: its words, and the one function that says what is training and what is test.

Everything eagle-tiny hears, reads and answers is made of `WORDS`. No two of them sound alike, so a transcript has
one right spelling (hence no "to" beside "two", no "for" beside "four").
"""

import hashlib
import json


def _words(text):
    return tuple(text.split())


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

NATURE = _words("sun moon sky rain snow wind storm thunder fog tree flower grass rose stone sand fire ocean")

WEATHER = _words("sunny cloudy rainy snowy windy foggy stormy warm cold hot cool wet dry")

PEOPLE = _words("""
    man woman boy girl child baby mother father sister brother uncle grandmother friend neighbour teacher doctor nurse
    farmer baker barber driver pilot sailor painter singer dancer lawyer dentist engineer mechanic carpenter gardener
    waiter captain king queen student people nobody
""")

BODY = _words("head face eye nose mouth arm hand finger knee foot hair")

VERBS = _words("""
    open close push pull carry bring take buy sell wash clean paint cut build find hold throw catch drop move keep send
    choose want need like love watch help meet follow visit call ask teach eat drink cook touch cover count order play
    start stop finish remember forget give get put make see
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
    everything nothing
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
    circles squares triangles stars crosses coins minutes hours days degrees books cats dogs birds flowers apples
""")

TALK = _words("""
    tell say show explain know live lives work works lie lies stay costs cost price pay worth opens closes colour shape
    number word sign chart value bar highest lowest name place thing time date job question answer person about likes
    loves next way plus
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
