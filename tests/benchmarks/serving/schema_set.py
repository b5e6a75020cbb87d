"""Fifty JSON schemas as applications use them, each with a prompt; our own set, written for this benchmark.

Extraction, classification, forms, records, arguments of functions: nested objects, arrays, enums, numbers
with bounds, formats, patterns, references, alternatives. Strings and arrays are bounded,
so that a small model
that repeats itself comes to an end.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def text(longest: int = 40, **more: Any) -> Schema:
    return {"type": "string", "maxLength": longest, **more}


def integer(low: int = 0, high: int = 1000) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def number(low: float = 0, high: float = 10000) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def one(*values: Any) -> Schema:
    return {"enum": [*values]}


def some(item: Schema, most: int = 3, least: int = 1) -> Schema:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


def record(optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


YES = {"type": "boolean"}
DATE, TIME = {"type": "string", "format": "date"}, {"type": "string", "format": "time"}
MAIL = {"type": "string", "pattern": r"^[a-z]{1,12}@[a-z]{1,12}\.(com|org|net)$"}
MONEY = record(amount=number(), currency=one("EUR", "USD", "GBP"))
ADDRESS = record(("unit",), street=text(), city=text(20), zip=text(10, pattern="^[0-9]{5}$"), unit=text(8))
PERSON = record(("email",), name=text(30), age=integer(0, 120), email=MAIL)
PLACE = record(lat=number(-90, 90), lon=number(-180, 180))

SCHEMAS: list[tuple[str, Schema]] = [
    ("Invent a person.", PERSON),
    ("Give an address in Berlin.", ADDRESS),
    ("Invent a customer with an address.", record(customer=PERSON, address=ADDRESS, since=DATE)),
    ("Write an invoice for two chairs.", record(
        number=text(10, pattern="^INV-[0-9]{4}$"), issued=DATE, total=MONEY,
        lines=some(record(item=text(), count=integer(1, 99), price=number())))),
    ("A recipe for pancakes.", record(
        title=text(), servings=integer(1, 12), minutes=integer(1, 240), steps=some(text(80), 4),
        ingredients=some(record(name=text(20), amount=number(0, 2000), unit=one("g", "ml", "piece",
        "tbsp")), 5))),
    ("Plan a meeting on Monday with Ann and Bob.", record(
        title=text(), day=one("Mon", "Tue", "Wed", "Thu", "Fri"), start=TIME, people=some(text(20)),
        online=YES)),
    ("Describe a laptop for a shop.", record(
        name=text(), brand=text(20), price=MONEY, in_stock=YES, tags=some(text(15), 4))),
    ("I loved this phone, the battery lasts for days!", record(
        sentiment=one("positive", "neutral", "negative"), score=integer(1, 5), reasons=some(text(60)))),
    ("Describe the film Titanic.", record(
        title=text(), year=integer(1900, 2030), genres=some(one("drama", "romance", "action", "comedy",
        "horror")),
        director=text(30), rating=number(0, 10))),
    ("Name a book by Jane Austen.", record(title=text(), author=text(30), year=integer(1700, 2030),
        pages=integer(1))),
    ("The weather in Rome today: sunny, 30 degrees.", record(
        city=text(20), sky=one("sunny", "cloudy", "rain", "snow"), celsius=number(-60, 60), wind=integer(0,
        200))),
    ("Book a flight from Paris to Tokyo.", record(
        origin=text(3, pattern="^[A-Z]{3}$"), destination=text(3, pattern="^[A-Z]{3}$"), date=DATE,
        seat=one("economy", "business", "first"), passengers=integer(1, 9))),
    ("Book a hotel in Madrid for three nights.", record(
        city=text(20), nights=integer(1, 30), guests=integer(1, 6), rate=MONEY, breakfast=YES)),
    ("The app crashes when I press save.", record(
        title=text(60), severity=one("low", "medium", "high", "critical"), component=text(20),
        steps=some(text(60)))),
    ("Classify: You won a prize, click here!", record(
        label=one("spam", "personal", "work", "news"), confidence=number(0, 1))),
    ("Marie Curie was born in Warsaw in 1867.", record(
        entities=some(record(text=text(30), kind=one("person", "place", "date", "other")), 4))),
    ("Translate good morning to French and German.", record(french=text(), german=text())),
    ("Ask three questions about the moon.", record(questions=some(record(
        question=text(80), choices=some(text(20), 3, 3), answer=integer(0, 2)), 2))),
    ("A user profile for a forum.", record(
        ("bio",), nick=text(12, pattern="^[a-z0-9_]{3,12}$"), joined=DATE, posts=integer(), bio=text(80),
        admin=YES)),
    ("Configure a web server.", record(
        host=text(30), port=integer(1, 65535), tls=record(enabled=YES, version=one("1.2", "1.3")),
        log=one("debug", "info", "warn", "error"))),
    ("Call the weather tool for Oslo.", record(name={"const": "weather"}, arguments=record(city=text(20),
        days=integer(1, 7)))),
    ("Search for red shoes under 50 dollars.", record(
        query=text(), filters=record(("brand",), colour=text(10), most=number(), brand=text(15)),
        sort=one("price", "rating", "new"))),
    ("Send a mail to Tom that the train is late.", record(to=some(MAIL, 2), subject=text(), body=text(160))),
    ("Turn on the kitchen light at half brightness.", record(
        device=text(20), room=one("kitchen", "bath", "bedroom"), on=YES, level=integer(0, 100))),
    ("Transfer 20 euros to Maria.", record(to=text(30), money=MONEY, reference=text(), urgent=YES)),
    ("A to-do list for moving house.", some(record(task=text(), done=YES, priority=integer(1, 3)), 4, 2)),
    ("The planets nearest to the sun.", some(record(name=text(12), moons=integer(0, 100)), 3, 3)),
    ("A family: two parents with a child.", {
        "$defs": {"person": {
            "type": "object",
            "properties": {"name": text(20), "children": {
                "type": "array", "items": {"$ref": "#/$defs/person"}, "maxItems": 2}},
            "required": ["name", "children"], "additionalProperties": False}},
        "$ref": "#/$defs/person"}),
    ("A circle or a square, as you like.", {"anyOf": [
        record(shape={"const": "circle"}, radius=number()), record(shape={"const": "square"},
        side=number())]}),
    ("A payment by card or by invoice.", record(order=integer(), payment={"anyOf": [
        record(kind={"const": "card"}, last4=text(4, pattern="^[0-9]{4}$")),
        record(kind={"const": "invoice"}, days=one(14, 30))]})),
    ("A middle name, if there is one: Johann Wolfgang Goethe.", record(
        first=text(15), middle={"anyOf": [text(15), {"type": "null"}]}, last=text(15))),
    ("The coordinates of London.", record(name=text(20), place=PLACE)),
    ("A route through two towns.", record(km=number(), stops=some(record(name=text(20), place=PLACE), 2, 2))),
    ("A patient with a cough.", record(
        age=integer(0, 120), symptoms=some(text(20)), days=integer(0, 365), fever=YES,
        temperature=number(34, 43))),
    ("A job offer for a baker.", record(
        title=text(), company=text(30), salary=record(least=integer(0, 200000), most=integer(0, 200000)),
        remote=YES, skills=some(text(20), 4))),
    ("A short CV of a teacher.", record(
        name=text(30), jobs=some(record(title=text(30), since=integer(1950, 2030), until=integer(1950,
        2030)), 2))),
    ("Score this essay: The cat sat on the mat.", record(
        grammar=integer(1, 10), style=integer(1, 10), comment=text(120))),
    ("A git commit that fixes a typo.", record(
        type=one("feat", "fix", "docs", "test"), scope=text(15), subject=text(50), breaking=YES)),
    ("A table of three cities.", record(
        columns=some(text(12), 2, 2), rows=some({"type": "array", "prefixItems": [text(15), integer(0,
        40000000)],
                                                 "items": False, "minItems": 2, "maxItems": 2}, 3, 3))),
    ("A password policy.", record(
        least=integer(6, 64), digits=YES, symbols=YES, expires=integer(0, 365), history=integer(0, 24))),
    ("A colour in RGB.", record(name=text(12), red=integer(0, 255), green=integer(0, 255), blue=integer(0,
        255))),
    ("A song by the Beatles.", record(
        title=text(), album=text(), seconds=integer(30, 900), writers=some(text(20), 2))),
    ("A football result.", record(
        home=text(20), away=text(20), score=record(home=integer(0, 20), away=integer(0, 20)), played=DATE)),
    ("A parcel that is on its way.", record(
        id=text(12, pattern="^[A-Z]{2}[0-9]{8}$"), state=one("sent", "moving", "delivered"),
        weight=number(0, 50),
        history=some(record(when=DATE, where=text(20)), 2))),
    ("A chess opening.", record(name=text(), moves=some(text(5, pattern="^[a-h][1-8][a-h][1-8]$"), 4))),
    ("Think, then answer: 12 times 12.", record(steps=some(text(60), 3), answer=integer(0, 100000))),
    ("A database column for a price.", record(
        name=text(15, pattern="^[a-z_]+$"), type=one("int", "text", "real", "date"), null=YES,
        default={"anyOf": [number(), {"type": "null"}]})),
    ("A game character.", record(
        name=text(20), level=integer(1, 99), stats=record(strength=integer(1, 20), wisdom=integer(1, 20),
        luck=integer(1, 20)),
        items=some(text(20)))),
    ("A rule: if it rains, close the window.", record(
        when=record(sensor=text(15), is_=one("above", "below", "equal"), value=number()),
        then=some(record(device=text(15), action=one("open", "close", "on", "off")), 2))),
    ("Summarise: bees make honey from nectar.", record(
        title=text(), summary=text(160), keywords=some(text(15), 4, 2))),
]  # fmt: skip
