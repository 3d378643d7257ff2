"""The assistant of the small world: 40 functions of a telephone and a home, and spoken requests that call them.

One table holds everything: a function's name, what it does, and its phrasings; the placeholders in the phrasings are
its parameters, and `KINDS` says how each of those is spoken and which value is then passed.
"""

import random
import re

from training.synthesis.world import (
    ANIMALS,
    COLOURS,
    FOODS,
    NAMES,
    NUMBERS,
    OBJECTS,
    PLACE_HOURS,
    ROOMS,
    TIMES,
    TOWNS,
    lines,
    spell,
    split,
)

MORNING, AFTERNOON, EVENING = range(5, 12), range(13, 17), range(17, 24)
WEEK = TIMES[TIMES.index("monday") : TIMES.index("sunday") + 1]
LONGEST_ENUM = 8  # a longer list of values is described instead, so that all 40 definitions fit a small context


def _same(values):
    return {value: value for value in values}


def _spelled(numbers):
    return {spell(number): number for number in numbers}


def _times():
    """Hours as people say them: "seven in the evening" -> "19:00"."""
    for part, hours in (("morning", MORNING), ("afternoon", AFTERNOON), ("evening", EVENING)):
        for hour in hours:
            yield f"{NUMBERS[(hour - 1) % 12]} in the {part}", f"{hour:02d}:00"
    yield "noon", "12:00"


# Each kind of parameter: its description, and what is said for each value that may be passed.
KINDS = {
    "device": ("A device", _same(("lamp", "heater", "fan", "radio", "television", "computer", "kettle", "oven"))),
    "room": ("A room or area of the home", _same(ROOMS)),
    "colour": ("A colour", _same(COLOURS[:8])),
    "percent": ("Percent", _spelled(range(5, 101, 5))),
    "degrees": ("Degrees Celsius", _spelled(range(10, 31))),
    "level": ("Level", _spelled(range(1, 11))),
    "minutes": ("Number of minutes", _spelled(range(2, 61))),
    "people": ("Number of people", _spelled(range(2, 13))),
    "first": ("First number", _spelled(range(1, 21))),
    "second": ("Second number", _spelled(range(1, 21))),
    "channel": ("Number of the channel", _spelled(range(1, 31))),
    "time": ("Time of day, HH:MM", dict(_times())),
    "day": ("Day", {"today": "today", "tomorrow": "tomorrow"} | {f"on {day}": day for day in WEEK}),
    "name": ("Name of a contact", _same(NAMES)),
    "town": ("Name of a town", _same(TOWNS)),
    "place": ("Kind of place", _same(place for place, _, _ in PLACE_HOURS)),
    "vehicle": ("Means of travel", _same(("bus", "train", "plane", "ship", "taxi", "car", "bicycle", "boat"))),
    "instrument": ("An instrument", _same(("piano", "guitar", "violin", "drum"))),
    "language": ("A language", _same(("english", "german", "french", "spanish"))),
    "food": ("Something to eat or drink", _same(FOODS)),
    "animal": ("An animal", _same(ANIMALS)),
    "word": ("The word", _same(OBJECTS)),
    "expert": ("Whom to see", _same(("dentist", "doctor", "lawyer", "barber", "mechanic", "teacher"))),
    "task": (
        "What to do",
        _same(
            lines("""
                buy the milk
                buy some bread
                call the doctor
                wash the car
                clean the kitchen
                help my mother
                close the window
                bring the ticket
                take the umbrella
                visit my uncle
                send the letter
                cook the soup
                find my ticket
                pay the waiter
            """)
        ),
    ),
    "message": (
        "Text of the message",
        _same(
            lines("""
                please come home
                call me soon
                the food is ready
                we are here
                meet me at noon
                please wait there
                thanks and goodbye
                hello my friend
                bring the key
                the train is late
                we are all tired
                where are you now
            """)
        ),
    ),
}

# name: (description, phrasings). Every fourth phrasing is held out (see `split`).
ASSISTANT = {
    "turn_on": ("Turn a device on.", """
        turn on the {device} in the {room}
        please turn the {device} in the {room} on
        switch on the {device} in the {room}
        can you turn on the {device} in the {room}
        start the {device} in the {room}
        in the {room} turn on the {device}
        can you please switch the {device} in the {room} on
        please switch on the {device} in the {room}
    """),
    "turn_off": ("Turn a device off.", """
        turn off the {device} in the {room}
        please turn the {device} in the {room} off
        switch off the {device} in the {room}
        can you turn off the {device} in the {room}
        stop the {device} in the {room}
        in the {room} turn off the {device}
        can you please switch the {device} in the {room} off
        please switch off the {device} in the {room}
    """),
    "set_brightness": ("Set how bright a room is.", """
        dim the light in the {room} to {percent} percent
        set the light in the {room} to {percent} percent
        please dim the {room} to {percent} percent
        set the {room} light to {percent} percent
        make the {room} {percent} percent bright
        the light in the {room} should be at {percent} percent
        can you dim the {room} light to {percent} percent
        please set the light in the {room} to {percent} percent
    """),
    "set_light_colour": ("Set the colour of the light in a room.", """
        make the light in the {room} {colour}
        turn the {room} light {colour}
        set the {room} light to {colour}
        please make the {room} light {colour}
        give the {room} some {colour} light
        the light in the {room} should be {colour}
        can you make the light in the {room} {colour}
        please set the light in the {room} to {colour}
    """),
    "set_temperature": ("Set the temperature of a room.", """
        set the temperature in the {room} to {degrees} degrees
        make the {room} {degrees} degrees warm
        heat the {room} to {degrees} degrees
        set the {room} to {degrees} degrees
        the {room} should be {degrees} degrees warm
        can you set the {room} temperature to {degrees} degrees
        {degrees} degrees in the {room} please
        please make it {degrees} degrees in the {room}
    """),
    "open_blinds": ("Open the blinds of a room.", """
        open the blinds in the {room}
        please open the {room} blinds
        raise the blinds in the {room}
        please open the blinds in the {room}
        can you raise the {room} blinds
        pull up the blinds in the {room}
        in the {room} open the blinds
        can you open the {room} blinds
    """),
    "close_blinds": ("Close the blinds of a room.", """
        close the blinds in the {room}
        please close the {room} blinds
        lower the blinds in the {room}
        please close the blinds in the {room}
        can you lower the {room} blinds
        pull down the blinds in the {room}
        in the {room} close the blinds
        can you close the {room} blinds
    """),
    "lock_door": ("Lock the door of a room.", """
        lock the {room} door
        please lock the door of the {room}
        can you lock the {room}
        please lock the {room} door
        is the {room} open please lock it
        lock the door of the {room} now
        keep the {room} door closed and lock it
        can you lock the door of the {room}
    """),
    "unlock_door": ("Unlock the door of a room.", """
        unlock the {room} door
        please unlock the door of the {room}
        can you unlock the {room}
        please unlock the {room} door
        unlock the {room} and let me in
        unlock the door of the {room} now
        please open the lock of the {room} door
        can you unlock the door of the {room}
    """),
    "start_vacuum": ("Let the robot clean a room.", """
        vacuum the {room}
        please clean the {room} with the robot
        let the robot clean the {room}
        can you vacuum the {room}
        start the vacuum in the {room}
        send the robot into the {room}
        the {room} is dirty please vacuum it
        please start the vacuum in the {room}
    """),
    "stop_vacuum": ("Send the robot home.", """
        stop the vacuum
        send the robot home
        stop the robot please
        please stop the vacuum
        the robot should go home
        can you stop the vacuum now
        the vacuum is very loud stop it
        can you send the robot home
    """),
    "cook_food": ("Cook food in the oven.", """
        cook the {food} for {minutes} minutes
        please cook the {food} {minutes} minutes
        put the {food} in the oven for {minutes} minutes
        can you cook the {food} for {minutes} minutes
        heat the {food} for {minutes} minutes
        the {food} needs {minutes} minutes in the oven
        start the oven with the {food} for {minutes} minutes
        please put the {food} in the oven for {minutes} minutes
    """),
    "water_garden": ("Water the garden.", """
        water the garden for {minutes} minutes
        please water the flowers for {minutes} minutes
        give the flowers water for {minutes} minutes
        can you water the garden for {minutes} minutes
        the garden needs {minutes} minutes of water
        start the water in the garden for {minutes} minutes
        the grass is dry water it for {minutes} minutes
        please give the garden water for {minutes} minutes
    """),
    "play_music": ("Play music in a room.", """
        play {instrument} music in the {room}
        please play some {instrument} music in the {room}
        play a {instrument} song in the {room}
        can you play {instrument} music in the {room}
        start some {instrument} music in the {room}
        let me listen to the {instrument} in the {room}
        in the {room} play some {instrument} music
        please play a {instrument} song in the {room}
    """),
    "stop_music": ("Stop the music.", """
        stop the music
        please stop this song
        turn off the music
        please stop the music
        make the music stop now
        can you stop the song
        the music should stop
        can you turn off the music
    """),
    "set_volume": ("Set the volume.", """
        set the volume to {level}
        turn the volume to {level}
        volume {level} please
        please set the volume to {level}
        make the volume {level}
        change the volume to level {level}
        the volume should be at {level}
        can you turn the volume to level {level}
    """),
    "set_channel": ("Set the channel of the television.", """
        show channel {channel}
        turn to channel {channel}
        channel {channel} please
        please show channel {channel}
        put channel {channel} on the television
        let me watch channel {channel}
        set the television to channel {channel}
        can you turn to channel {channel}
    """),
    "play_video": ("Play a video about an animal.", """
        show me a video about the {animal}
        play a video of the {animal}
        find a {animal} video
        please show me a {animal} video
        let me watch a video about the {animal}
        play the {animal} video
        start a video of the {animal}
        can you play a video about the {animal}
    """),
    "set_timer": ("Start a timer.", """
        set a timer for {minutes} minutes
        start a timer of {minutes} minutes
        timer {minutes} minutes please
        please set a timer for {minutes} minutes
        count down {minutes} minutes
        tell me when {minutes} minutes are over
        start the timer with {minutes} minutes
        can you start a timer for {minutes} minutes
    """),
    "cancel_timer": ("Cancel the timer.", """
        cancel the timer
        stop the timer
        please cancel my timer
        please stop the timer
        remove the timer
        turn off the timer
        forget the timer
        can you cancel the timer
    """),
    "set_alarm": ("Set an alarm.", """
        wake me {day} at {time}
        set an alarm {day} at {time}
        please wake me at {time} {day}
        please set an alarm {day} at {time}
        set the alarm at {time} {day}
        ring the alarm {day} at {time}
        can you wake me {day} at {time}
        can you set the alarm {day} at {time}
    """),
    "cancel_alarm": ("Cancel the alarm of a day.", """
        cancel the alarm {day}
        remove my alarm {day}
        do not wake me {day}
        please cancel my alarm {day}
        turn off the alarm {day}
        let me sleep long {day}
        please stop the alarm {day}
        can you remove the alarm {day}
    """),
    "add_reminder": ("Remind of a task on a day.", """
        set a reminder {day} to {task}
        add the reminder to {task} {day}
        do not let me forget to {task} {day}
        please set a reminder {day} to {task}
        tell me {day} to {task}
        help me remember to {task} {day}
        create a reminder to {task} {day}
        please add a reminder to {task} {day}
    """),
    "add_appointment": ("Make an appointment.", """
        make an appointment with the {expert} {day} at {time}
        book the {expert} {day} at {time}
        add an appointment {day} at {time} with the {expert}
        please make an appointment with the {expert} {day} at {time}
        ask the {expert} for an appointment {day} at {time}
        we meet the {expert} {day} at {time} please add it
        create an appointment at {time} {day} with the {expert}
        please book the {expert} at {time} {day}
    """),
    "list_appointments": ("List the appointments of a day.", """
        which appointment have we {day}
        show me every appointment {day}
        list my appointment and meeting {day}
        show me which appointment we have {day}
        what must we do {day}
        who do we meet {day}
        tell me every appointment {day}
        please list every appointment {day}
    """),
    "get_time": ("Get the time in a town.", """
        what time is it in {town}
        tell me the time in {town}
        what is the time in {town} now
        please tell me the time in {town}
        how late is it in {town}
        which hour is it in {town}
        show the clock of {town}
        do you know what time it is in {town}
    """),
    "get_date": ("Get the date.", """
        what day is it
        which day is today
        tell me the date
        please tell me which day it is
        what is the date today
        what date is it please
        do you know the date
        tell me what date it is
    """),
    "call_contact": ("Call a contact.", """
        call {name}
        please call {name} now
        start a call with {name}
        can you call {name}
        let me talk with {name}
        ring {name} please
        telephone {name}
        please start a call with {name}
    """),
    "send_message": ("Send a message to a contact.", """
        send {name} the message {message}
        tell {name} {message}
        message {name} {message}
        please tell {name} {message}
        send a message to {name} {message}
        say to {name} {message}
        give {name} the message {message}
        please send {name} the message {message}
    """),
    "add_to_shopping_list": ("Add to the shopping list.", """
        add {food} to the shopping list
        put {food} on my shopping list
        we need {food} on the list
        please add {food} to the list
        add some {food} to my list
        remember to buy {food}
        the shopping list needs {food}
        can you put {food} on the shopping list
    """),
    "remove_from_shopping_list": ("Remove from the shopping list.", """
        remove {food} from the shopping list
        take {food} off my shopping list
        we have {food} take it off the list
        please remove {food} from the list
        remove the {food} from my list
        do not buy {food}
        there is enough {food} remove it
        can you take {food} off the shopping list
    """),
    "show_shopping_list": ("Show the shopping list.", """
        show me the shopping list
        what is on the shopping list
        tell me what is on my list
        please show me my list
        what must we buy
        open the shopping list
        what do we need from the shop
        tell me what is on the shopping list
    """),
    "get_weather": ("Get the weather forecast of a town.", """
        what is the weather in {town} {day}
        how is the weather {day} in {town}
        show the forecast for {town} {day}
        tell me the weather in {town} {day}
        will it rain in {town} {day}
        is it warm in {town} {day}
        what will the weather be {day} in {town}
        please show me the weather {day} in {town}
    """),
    "find_route": ("Find the way to a town.", """
        show me the way to {town} with the {vehicle}
        how do we come to {town} with the {vehicle}
        find the way to {town} with the {vehicle}
        please show the {vehicle} way to {town}
        which way does the {vehicle} take to {town}
        take me to {town} with the {vehicle}
        what is the best way to {town} with the {vehicle}
        find me the best {vehicle} way to {town}
    """),
    "find_place": ("Find the next place of a kind.", """
        where is the next {place}
        find a {place} near here
        is there a {place} near me
        please find the next {place}
        show me a {place} near me
        how far is the next {place}
        take me to a {place}
        can you show me the next {place}
    """),
    "order_taxi": ("Order a taxi to a town.", """
        order a taxi to {town} at {time}
        send me a taxi at {time} to {town}
        book a taxi to {town} at {time}
        please order a taxi at {time} to {town}
        we need a taxi to {town} at {time}
        call a taxi at {time} to {town}
        a taxi should drive me to {town} at {time}
        please book me a taxi to {town} at {time}
    """),
    "buy_ticket": ("Buy a ticket.", """
        buy a {vehicle} ticket to {town} {day}
        get me a {vehicle} ticket to {town} {day}
        book a ticket for the {vehicle} to {town} {day}
        please buy a {vehicle} ticket {day} to {town}
        one ticket for the {vehicle} {day} to {town}
        order a {vehicle} ticket to {town} {day}
        we need a {vehicle} ticket to {town} {day}
        can you get a ticket for the {vehicle} to {town} {day}
    """),
    "book_table": ("Book a table in the restaurant.", """
        book a table for {people} people at {time}
        find a table for {people} at {time}
        we need a table at {time} for {people} people
        please book a table at {time} for {people} people
        order a table for {people} people at {time}
        a table for {people} at {time} please
        {people} people want to eat at {time} book a table
        please find a table for {people} people at {time}
    """),
    "translate_word": ("Translate a word.", """
        translate {word} into {language}
        what is {word} in {language}
        how do you say {word} in {language}
        please translate {word} into {language}
        tell me the {language} word for {word}
        give me {word} in {language}
        say {word} in {language}
        what is the {language} word for {word}
    """),
    "add_numbers": ("Add two numbers.", """
        what is {first} plus {second}
        add {first} and {second}
        how much is {first} plus {second}
        tell me what {first} plus {second} is
        {first} plus {second} please
        count {first} and {second} together
        give me {first} plus {second}
        how much is {first} and {second} together
    """),
}  # fmt: skip


def parameters(phrasing: str) -> list[str]:
    """List the placeholders of a phrasing in the order of `KINDS`: "call {name}" -> ["name"]."""
    placeholders = re.findall(r"{(\w+)}", phrasing)
    return [kind for kind in KINDS if kind in placeholders]


def _parameter_schema(kind):
    description, spoken = KINDS[kind]
    values = list(spoken.values())
    if isinstance(values[0], int):
        return {"type": "integer", "description": description, "minimum": min(values), "maximum": max(values)}
    schema = {"type": "string", "description": description}
    return schema | {"enum": values} if len(values) <= LONGEST_ENUM else schema


def _definition(name, description, kinds):
    properties = {kind: _parameter_schema(kind) for kind in kinds}
    schema = {"type": "object", "properties": properties, "required": kinds}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


PHRASINGS = {name: lines(phrasings) for name, (_, phrasings) in ASSISTANT.items()}
FUNCTIONS = [  # JSON-schema tool definitions, as transformers' chat templates take them
    _definition(name, description, parameters(PHRASINGS[name][0])) for name, (description, _) in ASSISTANT.items()
]


def request(rng: random.Random, part: str) -> tuple[str, dict]:
    """Draw a request in a phrasing that belongs to "train" or to "test".

    Returns the spoken text and the call that answers it, {"name", "arguments"}.
    """
    name = rng.choice(list(PHRASINGS))
    phrasing = rng.choice([line for index, line in enumerate(PHRASINGS[name]) if split("phrasing", name, index) == part])
    said = {kind: rng.choice(list(KINDS[kind][1])) for kind in parameters(phrasing)}
    arguments = {kind: KINDS[kind][1][words] for kind, words in said.items()}
    return phrasing.format(**said), {"name": name, "arguments": arguments}
