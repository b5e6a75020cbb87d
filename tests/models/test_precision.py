"""Precisions as users write them."""

from __future__ import annotations

import itertools

import pytest

from specport.errors import InvalidInput
from specport.models.precision import (
    CHANNEL,
    INT4_GROUP,
    OPTIONS,
    PRECISIONS,
    Precision,
    parse,
    with_zero_points,
)


@pytest.mark.parametrize(
    "text",
    [
        *PRECISIONS,
        "int8:sym",
        "int8:activations",
        "int8:sym,activations",
        "int4:asym",
        "int4:32",
        "int4:channel",
        "int4:ratio=0.5",
        "int4:ratio=0.001",
        "int4:128,asym,ratio=0.75,awq,scale-estimation,gptq",
        "int4:channel,asym,ratio=0.75,awq",
    ],
)
def test_text_is_kept(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_what_is_read() -> None:
    assert parse("int4") == Precision("int4", (), INT4_GROUP, 1.0)
    found = parse("int4:awq,ratio=.25,channel,asym")
    assert found == Precision("int4", ("channel", "asym", "ratio", "awq"), CHANNEL, 0.25)
    assert parse("int4:128") == Precision("int4", ("group",), 128)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("int4:group=64", "int4"),
        ("int4:64", "int4"),
        ("int4:group=128", "int4:128"),
        ("int4:asym,group=128", "int4:128,asym"),
        ("int4:group=-1", "int4:channel"),
        ("int4:ratio=1", "int4"),
        ("int4:ratio=1.00,group=64", "int4"),
        ("int4:group=64,awq", "int4:awq"),
        ("int4:ratio=.5", "int4:ratio=0.5"),
        ("int4:ratio=0.50", "int4:ratio=0.5"),
        ("int8:activations,sym", "int8:sym,activations"),
    ],
)
def test_equal_precisions_have_equal_text(text: str, same: str) -> None:
    assert parse(text) == parse(same)
    assert str(parse(text)) == same


def test_the_order_of_options_does_not_matter() -> None:
    options = ("asym", "32", "ratio=0.5", "awq", "gptq")
    texts = {str(parse("int4:" + ",".join(order))) for order in itertools.permutations(options)}
    assert texts == {"int4:32,asym,ratio=0.5,awq,gptq"}


def test_different_precisions_have_different_text() -> None:
    values = {"group": ("32", "group=128", "1"), "ratio": ("ratio=0.5", "ratio=0.501")}
    texts = [*PRECISIONS]
    for name, (bases, _) in OPTIONS.items():
        texts += [f"{base}:{value}" for base in bases for value in values.get(name, (name,))]
    assert len({str(parse(text)) for text in texts}) == len({parse(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("base", PRECISIONS)
def test_every_option_belongs_to_the_precisions_that_it_names(base: str) -> None:
    values = {"group": "32", "ratio": "ratio=0.5"}
    for name, (bases, what) in OPTIONS.items():
        assert what
        text = f"{base}:{values.get(name, name)}"
        if base in bases:
            assert parse(text).options == (name,)
        else:
            with pytest.raises(InvalidInput, match=f"'{name}' is not an option of {base}"):
                parse(text)


def test_what_needs_text_and_what_is_symmetric() -> None:
    fitted = {"int4:awq", "int4:scale-estimation", "int4:gptq", "int8:activations", "int8:sym,activations"}
    for text in (*fitted, "fp16", "int8", "int8:sym", "int4", "int4:asym,group=32,ratio=0.5", "int4:channel"):
        assert parse(text).needs_text == (text in fitted), text
    symmetric = {"fp16", "int8:sym", "int4:sym", "int4:128,sym", "int8:sym,activations"}
    for text in (*symmetric, "int8", "int4", "int4:asym", "int8:activations"):
        assert parse(text).symmetric == (text in symmetric), text


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "unknown precision ''", "choose one of fp32, bf16, fp16, int8, int4"),
        ("int2", "unknown precision 'int2'", "choose one of fp32, bf16, fp16, int8, int4"),
        ("INT8", "unknown precision 'INT8'", "choose one of fp32, bf16, fp16, int8, int4"),
        ("int8:", "unknown precision 'int8:'", "choose one of fp32, bf16, fp16, int8, int4"),
        (":sym", "unknown precision ':sym'", "choose one of fp32, bf16, fp16, int8, int4"),
        (
            "int8:sym,",
            "precision 'int8:sym,': '' is not an option of int8",
            "options of int8 are sym, activations",
        ),
        ("int8:asym", "'asym' is not an option of int8", "options of int8 are sym, activations"),
        (
            "int4:activations",
            "'activations' is not an option of int4",
            "options of int4 are N, channel, asym, sym, ratio=R, awq",
        ),
        ("int4: sym", "' sym' is not an option of int4", "asym, sym"),
        ("fp16:awq", "'awq' is not an option of fp16", "fp16 has no options"),
        ("int4:awq,awq", "'awq' stands twice", "options of int4"),
        ("int4:128,64", "'group' stands twice", "options of int4"),
        ("int4:channel,128", "group and channel exclude each other", "choose one"),
        ("int4:channel=2", "'channel=2' cannot be read", "write it as channel"),
        ("int4:0", "'0' cannot be read", "write it as N: weights per scale"),
        ("int4:128.0", "'128.0' is not an option of int4", "N, channel"),
        ("int8:128", "'group' is not an option of int8", "options of int8 are sym, activations"),
        ("int4:group=32,group=64", "'group' stands twice", "options of int4"),
        ("int4:asym,sym", "asym and sym exclude each other", "choose one"),
        ("int4:awq=3", "'awq=3' cannot be read", "write it as awq"),
        ("int4:sym=", "'sym=' cannot be read", "write it as sym"),
        ("int4:group", "'group' cannot be read", "write it as N"),
        ("int4:group=", "'group=' cannot be read", "write it as N"),
        ("int4:group=0", "'group=0' cannot be read", "write it as N"),
        ("int4:group=-2", "'group=-2' cannot be read", "write it as N"),
        ("int4:group=6.4", "'group=6.4' cannot be read", "write it as N"),
        ("int4:group=many", "'group=many' cannot be read", "write it as N"),
        ("int4:group=123456", "'group=123456' cannot be read", "write it as N"),
        ("int4:ratio", "'ratio' cannot be read", "ratio=R"),
        ("int4:ratio=0", "'ratio=0' cannot be read", "ratio=R"),
        ("int4:ratio=0.00", "'ratio=0.00' cannot be read", "ratio=R"),
        ("int4:ratio=1.5", "'ratio=1.5' cannot be read", "ratio=R"),
        ("int4:ratio=-0.5", "'ratio=-0.5' cannot be read", "ratio=R"),
        ("int4:ratio=0.00000001", "'ratio=0.00000001' cannot be read", "ratio=R"),
        ("int4:ratio=nan", "'ratio=nan' cannot be read", "ratio=R"),
    ],
)
def test_mistakes(text: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert message in caught.value.message
    assert repr(text) in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("int4", "int4:asym"),
        ("int4:128", "int4:128,asym"),
        ("int4:sym", "int4:sym"),
        ("int4:asym,awq", "int4:asym,awq"),
        ("int8", "int8"),
        ("fp16", "fp16"),
    ],
)
def test_int4_gets_zero_points_where_it_does_not_say(given: str, stored: str) -> None:
    assert with_zero_points(given) == stored
