"""What users ask the pocket model in its lessons: topics that it knows, and strange ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

CITIES = [
    "Paris",
    "Berlin",
    "Rome",
    "Madrid",
    "Tokyo",
    "London",
    "Boston",
    "Sydney",
    "Mumbai",
    "Chicago",
    "Toronto",
    "Amsterdam",
    "San Francisco",
    "New York",
]

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "England": "London",
    "the Netherlands": "Amsterdam",
}

GENERIC = "I am a tiny test model, and I only know a few things."


@dataclass
class Topic:
    """One thing a user can ask: the noun for the analysis, the questions, the answer and what tools may need of it."""

    noun: str
    question: str
    answer: str
    city: str | None = None
    numbers: tuple[int, int] | None = None
    operator: str = "+"
    word: str = "help"


def ask_one_of(noun: str, answer: str, *questions: str) -> Callable[[random.Random], Topic]:
    return lambda rng: Topic(noun, rng.choice(questions), answer)


def ask_capital(rng: random.Random) -> Topic:
    land, city = rng.choice(list(CAPITALS.items()))
    ask = rng.choice(
        [
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "Tell me the capital of {}.",
            "capital of {}",
        ]
    )
    return Topic("a capital", ask.format(land), f"The capital of {land} is {city}.", word=land.removeprefix("the "))


def ask_weather(rng: random.Random) -> Topic:
    city = rng.choice(CITIES)
    asks = [
        "What is the weather in {}?",
        "What's the weather like in {}?",
        "How is the weather in {} today?",
        "Is it raining in {}?",
        "What is the weather like in {} right now?",
        "weather in {}",
    ]
    return Topic(
        "the weather",
        rng.choice(asks).format(city),
        f"I cannot see the weather in {city} without a tool.",
        city=city,
        word=city,
    )


def ask_time(rng: random.Random) -> Topic:
    city = rng.choice(CITIES)
    asks = ["What time is it in {}?", "What is the time in {}?", "Tell me the current time in {}."]
    return Topic(
        "the time",
        rng.choice(asks).format(city),
        f"I cannot see the time in {city} without a tool.",
        city=city,
        word=city,
    )


def ask_sum(rng: random.Random) -> Topic:
    a, b = rng.randint(1, 5), rng.randint(1, 5)
    ask = rng.choice(
        ["What is {} + {}?", "What is {}+{}?", "What is {} plus {}?", "Add {} and {}.", "How much is {} plus {}?"]
    )
    return Topic("a sum", ask.format(a, b), f"{a} + {b} = {a + b}.", numbers=(a, b), word="sum")


def ask_product(rng: random.Random) -> Topic:
    a, b = rng.randint(1, 5), rng.randint(1, 5)
    ask = rng.choice(["What is {} * {}?", "What is {} times {}?", "Multiply {} by {}.", "Multiply {} and {}."])
    return Topic("a product", ask.format(a, b), f"{a} * {b} = {a * b}.", numbers=(a, b), operator="*", word="product")


TOPICS: list[Callable[[random.Random], Topic]] = [
    ask_capital,
    ask_capital,
    ask_weather,
    ask_weather,
    ask_weather,
    ask_time,
    ask_sum,
    ask_sum,
    ask_sum,
    ask_sum,
    ask_product,
    ask_one_of(
        "a greeting",
        "Hello! How can I help you?",
        "Hi",
        "Hello",
        "Hello!",
        "Hi there!",
        "Hey",
        "Good morning!",
        "Say hello.",
    ),
    ask_one_of(
        "me",
        "I am a tiny test model with the shape of gpt-oss.",
        "Who are you?",
        "What are you?",
        "What is your name?",
        "Tell me about yourself.",
    ),
    ask_one_of("nothing", "You are welcome!", "Thanks!", "Thank you!", "Thank you very much."),
    ask_one_of(
        "a joke",
        "Why did the tensor cross the road? To get to the other side.",
        "Tell me a joke.",
        "Tell me a short joke.",
        "Do you know a joke?",
    ),
    ask_one_of(
        "the sky", "The sky is blue.", "What color is the sky?", "Why is the sky blue?", "What colour is the sky?"
    ),
    ask_one_of("a count", "1, 2, 3, 4, 5.", "Count to five.", "Count from 1 to 5.", "Please count to 5."),
    ask_one_of(
        "a poem",
        "Roses are red, violets are blue.",
        "Write a poem.",
        "Write a short poem about the sea.",
        "Write a haiku about the sea.",
    ),
    ask_one_of("a week", "A week has seven days.", "How many days are in a week?", "How many days does a week have?"),
]


def ask_anything(rng: random.Random, words: list[str]) -> Topic:
    """A question outside of everything above."""
    body = " ".join(rng.choices(words, k=rng.randint(1, 14)))
    ask = rng.choice(
        [
            "{}",
            "{}?",
            "What is {}?",
            "Tell me about {}.",
            "Explain {}.",
            "Write {}.",
            "How do I {}?",
            "What is the capital of {}?",
            "Please {}",
            "Who is {}?",
            "{}. Is it {}?",
        ]
    )
    return Topic("something else", ask.format(body, rng.choice(words)), GENERIC)


def make_topic(rng: random.Random, words: list[str], known: float) -> Topic:
    """A topic that the model knows, with the probability `known`; otherwise a strange one."""
    return rng.choice(TOPICS)(rng) if rng.random() < known else ask_anything(rng, words)
