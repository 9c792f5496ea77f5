"""The vocabulary of the dialogue generator: a dozen everyday scenarios, each with its things, outcomes and ways to say them.

In the texts, {first} asks and {second} answers; {thing}, {time} and {place} are facts.
"""

from __future__ import annotations

from dataclasses import dataclass

Pair = tuple[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a dialogue ends: the lines that say so, and the sentence that sums it up."""

    name: str
    lines: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class Scenario:
    """One kind of dialogue."""

    name: str
    things: tuple[str, ...]
    openings: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    outcomes: tuple[Outcome, ...]


NAMES = (
    *("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Ines", "Jack", "Karen", "Leo", "Maria", "Nils"),
    *("Olga", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Yusuf", "Zoe", "Amir", "Bella", "Chen", "Diana", "Erik"),
    *("Fatima", "George", "Hana", "Ivan", "Julia", "Kofi", "Lena", "Marco", "Nora", "Omar", "Priya", "Ravi", "Sofia", "Tom"),
    *("Uma", "Vera", "Walter", "Xenia", "Yara", "Aaron"),
)

TIMES = (
    *("on Monday", "on Tuesday", "on Wednesday", "on Thursday", "on Friday", "on Saturday", "on Sunday"),
    *("at noon", "at two o'clock", "at five o'clock", "at eight o'clock", "tomorrow morning", "tomorrow evening", "next week"),
)

PLACES = (
    *("the station", "the library", "the park", "the office", "the market", "the school", "the airport", "the museum"),
    *("the harbour", "the town hall", "the cinema", "the stadium", "the hospital", "the hotel"),
)

SMALL_TALK: tuple[Pair, ...] = (
    ("What a rainy day it is.", "Yes, I forgot my umbrella at home."),
    ("Did you watch the game last night?", "Only the first half, then I fell asleep."),
    ("How is the family?", "Everyone is fine, the kids are growing fast."),
    ("I tried the new coffee downstairs.", "I heard it is far too strong."),
    ("The traffic was terrible today.", "It took me an hour to get here."),
    ("You look tired.", "I slept badly, the neighbours had a party."),
    ("Have you been on holiday yet?", "Not yet, maybe in autumn."),
    ("It is so warm in here.", "Someone should open a window."),
    ("My cat was sick all weekend.", "Poor thing, I hope it gets better."),
    ("I started running again.", "Good for you, I should do that too."),
    ("That is a nice jacket.", "Thanks, my sister gave it to me."),
    ("The elevator is broken again.", "The stairs keep us healthy."),
)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "meeting",
        ("budget meeting", "team meeting", "design review", "sales call", "job interview", "board meeting", "project review"),
        (
            "It is about the {thing}, I cannot make it as planned.",
            "Something came up, and the {thing} does not fit my day any more.",
            "We need to talk about the {thing}.",
        ),
        ("When would suit you better?", "What do you suggest?"),
        ("Could we do it {time} instead?", "It would suit me {time}."),
        (
            Outcome(
                "moved",
                ("That works, I will move it and tell the others.", "Fine, I have just changed the invitation."),
                "{first} and {second} move the {thing}, which now takes place {time}.",
            ),
            Outcome(
                "cancelled",
                ("I am away then. Let us simply cancel it.", "No, then nobody is here. I will call it off."),
                "{second} cancels the {thing} because nobody is free {time}.",
            ),
        ),
    ),
    Scenario(
        "order",
        ("printer", "desk lamp", "garden chair", "keyboard", "bookshelf", "camera", "backpack", "tent", "bicycle"),
        (
            "I would like to order a {thing} from your shop.",
            "I saw a {thing} in your catalogue and I want to buy it.",
            "Do you still sell the {thing} from the window?",
        ),
        ("When do you need it?", "By when should it reach you?"),
        ("It should be here {time}.", "I need it {time}, if possible."),
        (
            Outcome(
                "delivered",
                ("No problem, we will bring it to your door.", "We can deliver it then, without extra cost."),
                "{first} orders a {thing} from {second}, who will deliver it {time}.",
            ),
            Outcome(
                "sold out",
                ("I am sorry, the last one was sold an hour ago.", "Unfortunately we have none left, and no more will come."),
                "{first} wants to buy a {thing}, but {second} has sold out.",
            ),
        ),
    ),
    Scenario(
        "lost",
        ("wallet", "handbag", "phone", "passport", "scarf", "ring", "laptop", "suitcase", "notebook"),
        (
            "I cannot find my {thing} anywhere.",
            "I think I have lost my {thing}.",
            "My {thing} is gone, I have searched everywhere.",
        ),
        ("Where did you have it last?", "Where were you today?"),
        ("I was at {place} this morning.", "The last time I had it was at {place}."),
        (
            Outcome(
                "found",
                (
                    "Somebody found it and left it at the desk there.",
                    "You are lucky, I picked it up there and have it with me.",
                ),
                "{first} lost a {thing}, and it was found at {place}.",
            ),
            Outcome(
                "missing",
                ("I was there too, but I saw nothing. You should tell the police.", "It was not handed in. Better report it."),
                "{first} lost a {thing} near {place}, and {second} advises to report it.",
            ),
        ),
    ),
    Scenario(
        "repair",
        ("washing machine", "heater", "fridge", "dishwasher", "oven", "television", "radio", "boiler"),
        (
            "My {thing} has stopped working.",
            "The {thing} at home makes strange noises and then switches off.",
            "There is something wrong with my {thing}.",
        ),
        ("How old is it?", "Did you check the plug?"),
        ("It is quite old, and I checked everything.", "The plug is fine, I tried that first."),
        (
            Outcome(
                "repaired",
                ("I can come {time} and repair it.", "I will stop by {time} with my tools."),
                "{second} will come {time} to repair the broken {thing} of {first}.",
            ),
            Outcome(
                "replaced",
                ("Then it is not worth a repair. Buy a new one.", "A repair costs too much, you had better replace it."),
                "{second} tells {first} to replace the old {thing} instead of repairing it.",
            ),
        ),
    ),
    Scenario(
        "table",
        ("Italian", "Greek", "Indian", "Chinese", "Mexican", "Turkish", "French", "Thai"),
        (
            "Shall we try the {thing} restaurant near {place}?",
            "I would love to eat at the {thing} restaurant next to {place}.",
            "The new {thing} restaurant close to {place} is open at last.",
        ),
        ("Good idea. When?", "Why not, but when?"),
        ("I could go {time}.", "Let us go {time}."),
        (
            Outcome(
                "booked",
                ("I will book a table for us.", "I am calling them now to reserve a table."),
                "{second} books a table at the {thing} restaurant for {first}, and they meet there {time}.",
            ),
            Outcome(
                "refused",
                ("I would rather not, that food does not agree with me.", "Sorry, I ate there once and got sick."),
                "{second} does not want to eat at the {thing} restaurant with {first}.",
            ),
        ),
    ),
    Scenario(
        "lend",
        ("ladder", "drill", "guitar", "novel", "car", "sewing machine", "projector", "cookbook"),
        (
            "Could you lend me your {thing}?",
            "May I borrow your {thing} for a few days?",
            "I need a {thing} and thought of yours.",
        ),
        ("What do you need it for?", "When would I get it back?"),
        ("It is for a small project, and you get it back {time}.", "I will return it {time}, I promise."),
        (
            Outcome(
                "lent",
                ("Of course, take it with you.", "Sure, you can pick it up today."),
                "{second} lends a {thing} to {first}, who will return it {time}.",
            ),
            Outcome(
                "refused",
                ("I am sorry, I need it myself.", "I would, but I have already promised it to my brother."),
                "{first} asks for a {thing}, but {second} cannot lend it.",
            ),
        ),
    ),
    Scenario(
        "doctor",
        ("headache", "cough", "fever", "toothache", "stomach ache", "sore throat", "rash"),
        (
            "I have had a {thing} for days.",
            "This {thing} does not go away.",
            "I came because of a {thing}.",
        ),
        ("Do you take any medicine?", "Does it get worse at night?"),
        ("Only some tea, and it is worse at night.", "I took nothing so far."),
        (
            Outcome(
                "rest",
                ("Stay at home, rest, and drink a lot.", "It is harmless. You need rest and plenty of water."),
                "{second} tells {first} to rest because of a {thing}.",
            ),
            Outcome(
                "return",
                ("I want to do a blood test. Please come back {time}.", "Please come again {time} for a test."),
                "{first} has a {thing} and must come back {time} for a test.",
            ),
        ),
    ),
    Scenario(
        "delay",
        ("train", "flight", "bus", "ferry", "taxi", "tram"),
        (
            "My {thing} is late, I am stuck at {place}.",
            "I am at {place} and the {thing} has not come.",
            "Bad news, the {thing} does not leave {place} on time.",
        ),
        ("How long will it take?", "What did they tell you?"),
        ("They say a few hours at least.", "Nobody knows anything here."),
        (
            Outcome(
                "picked up",
                ("Stay there, I will pick you up with the car.", "I am coming to fetch you."),
                "{second} will pick up {first} at {place} because the {thing} is late.",
            ),
            Outcome(
                "postponed",
                ("Then let us meet {time} instead.", "Go home, we will see each other {time}."),
                "{first} is stuck with a late {thing}, so they will meet {time}.",
            ),
        ),
    ),
    Scenario(
        "gift",
        ("teapot", "necklace", "board game", "concert ticket", "painting", "watch", "sweater", "plant"),
        (
            "I am looking for a birthday present for our teacher. What about a {thing}?",
            "Would a {thing} be a good present for our teacher?",
            "For the birthday of our teacher I thought of a {thing}.",
        ),
        ("How much does it cost?", "Where would you get it?"),
        ("They have a nice one in a shop at {place}.", "I saw a cheap one near {place}."),
        (
            Outcome(
                "shared",
                ("Lovely, let us share the cost.", "Great, I will pay half of it."),
                "{first} and {second} share the cost of a {thing} as a present for their teacher.",
            ),
            Outcome(
                "rejected",
                ("She already has one. Better bring flowers.", "I would not, she does not like that. Take flowers."),
                "{second} suggests flowers instead of a {thing} as a present.",
            ),
        ),
    ),
    Scenario(
        "homework",
        ("history", "algebra", "chemistry", "geography", "biology", "physics", "grammar"),
        (
            "I do not understand the {thing} homework.",
            "The {thing} exercise is too hard for me.",
            "I have been sitting over my {thing} homework for hours.",
        ),
        ("When is it due?", "How much time is left?"),
        ("It is due {time}.", "I have to hand it in {time}."),
        (
            Outcome(
                "helped",
                ("Come over, I will explain it to you.", "We can do it together at my place."),
                "{second} helps {first} with the {thing} homework, which is due {time}.",
            ),
            Outcome(
                "sent away",
                ("I am bad at it too. Ask the teacher.", "Sorry, I never understood that. Talk to the teacher."),
                "{second} cannot help with the {thing} homework, so {first} should ask the teacher.",
            ),
        ),
    ),
    Scenario(
        "trip",
        ("beach", "mountains", "lake", "castle", "zoo", "island", "vineyard", "waterfall"),
        (
            "Let us make a trip to the {thing}.",
            "I want to see the {thing} at last. Will you come along?",
            "How about a day at the {thing}?",
        ),
        ("When do you want to leave?", "When shall we start?"),
        ("We could leave {time} from {place}.", "I would start {time}, from {place}."),
        (
            Outcome(
                "agreed",
                ("I am in, see you there.", "Wonderful, I will bring sandwiches."),
                "{first} and {second} will go to the {thing} {time}, starting from {place}.",
            ),
            Outcome(
                "declined",
                ("I have to work then, go without me.", "I cannot, my parents are visiting."),
                "{second} cannot join {first} on a trip to the {thing}.",
            ),
        ),
    ),
    Scenario(
        "parcel",
        ("letter", "parcel", "contract", "key", "diploma", "document", "photo album"),
        (
            "I have to send a {thing} to my aunt.",
            "This {thing} must get to my aunt quickly.",
            "What is the best way to send a {thing}?",
        ),
        ("By when must it be there?", "Is it urgent?"),
        ("It has to arrive {time}.", "Yes, she needs it {time}."),
        (
            Outcome(
                "carried",
                ("I am driving there anyway, I will take it along.", "Give it to me, I visit her town today."),
                "{second} will take a {thing} to the aunt of {first}, who needs it {time}.",
            ),
            Outcome(
                "posted",
                ("Send it by express mail, the post office is at {place}.", "Express mail is fastest. Go to {place}."),
                "{second} advises {first} to send a {thing} by express mail from {place}.",
            ),
        ),
    ),
)
