"""Questions from titles and first sentences, and what is left of the documents."""

from __future__ import annotations

import pytest

from raycurate.pairs.titles import first_sentence, plain, title_pair, without_heading, without_name


def test_prose_has_its_title_for_a_question() -> None:
    pair = title_pair("PEP Purpose and Guidelines", "# PEP Purpose and Guidelines\n\nPEP stands for a proposal.")
    assert pair is not None
    assert (pair.question, pair.passage) == ("PEP Purpose and Guidelines", "PEP stands for a proposal.")


def test_a_function() -> None:
    text = (
        "def can_access_peer(device: Device, peer: Device) -> bool\n\n"
        "Check if peer access between two devices is possible.\n\n"
        "Args:\n    device: the first.\n\n>>> torch.cuda.can_access_peer(0, 1)\nSee :func:`can_access_peer`."
    )
    pair = title_pair("torch.cuda.can_access_peer", text)
    assert pair is not None
    assert pair.question == "Check if peer access between two devices is possible"
    assert "can_access_peer" not in pair.passage
    assert "def " not in pair.passage and "Check if" not in pair.passage
    assert pair.passage == "Args:\n    device: the first.\n\n>>> …(0, 1)\nSee :func:`…`."


def test_a_common_word_goes_only_where_it_is_code() -> None:
    text = "Apply it, then apply again: `apply`, Module.apply(fn), apply(fn), reapply"
    assert without_name("apply", "m.Module.apply", text) == "Apply it, then apply again: `…`, …(fn), …(fn), reapply"


def test_a_coined_name_goes_everywhere() -> None:
    text = "ZOOptSearch is a.b.ZOOptSearch, no ZOOptSearcher."
    assert without_name("ZOOptSearch", "ray.ZOOptSearch", text) == "… is …, no ZOOptSearcher."


def test_calls_before_the_first_sentence_are_signatures() -> None:
    text = (
        "def softsign(input)\n\nsoftsign(input, *, out=None) -> Tensor\n\nApplies the function element-wise.\n\nMore."
    )
    pair = title_pair("torch.nn.functional.softsign", text)
    assert pair is not None
    assert (pair.question, pair.passage) == ("Applies the function element-wise", "More.")


def test_a_box_before_the_first_sentence_stays_in_the_passage() -> None:
    text = (
        'class Json\n\n!!! abstract "Usage"\n    See the guide.\n\n    Twice.\n\nAdds a schema to a type. It is small.'
    )
    pair = title_pair("pydantic.Json", text)
    assert pair is not None
    assert pair.question == "Adds a schema to a type"
    assert pair.passage == '!!! abstract "Usage"\n    See the guide.\n\n    Twice.\n\nIt is small.'


def test_a_question_does_not_stand_in_its_passage_again() -> None:
    text = "class Norm(Module)\n\nApplies group normalization.\n\nIt applies\n``group`` normalization, or not."
    pair = title_pair("torch.Norm", text)
    assert pair is not None
    assert pair.passage == "It …, or not."


@pytest.mark.parametrize(
    ("text", "sentence", "rest"),
    [
        ("One two. Three.", "One two.", "Three."),
        ("Use e.g. this one. And that.", "Use e.g. this one.", "And that."),
        ("By J. R. Tolkien himself! More.", "By J. R. Tolkien himself!", "More."),
        ("Version 3.11 is here.\nMore.", "Version 3.11 is here.", "More."),
        ("No end\nof a line\n\nNext.", "No end\nof a line", "Next."),
        ("Before a list\n- one\n- two", "Before a list", "- one\n- two"),
        ("Before arguments\nArgs:\n    x: one.", "Before arguments", "Args:\n    x: one."),
        ("A heading\n=========\n\nText.", "A heading", "Text."),
        ("=======\nHeading\n=======\n\nText.", "Heading", "Text."),
        ("- only\n- a list", "", "- only\n- a list"),
    ],
)
def test_first_sentence(text: str, sentence: str, rest: str) -> None:
    assert first_sentence(text) == (sentence, rest)


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("Wraps a :class:`~torch.utils.DataLoader`.", "Wraps a DataLoader"),
        ("Loads ``x`` from [`Trainer`] and `y`", "Loads x from Trainer and y"),
        ("See [the docs](https://a.b/c) for **more**", "See the docs for more"),
        ("Numbers in [0, 1) or [1, 2]", "Numbers in [0, 1) or [1, 2]"),
        ("A `link <https://a.b>`_ of\n  two lines:", "A link of two lines"),
        ("The *encoder* of a * b * c, `**kwargs`", "The encoder of a * b * c, **kwargs"),
    ],
)
def test_plain(marked: str, expected: str) -> None:
    assert plain(marked) == expected


@pytest.mark.parametrize(
    "text",
    [
        "def f(x)\n\nCopyright 2020 Somebody. Licensed under what.",
        "def f(x)\n\nSee base class.",
        "def f(x)\n\n- a list\n- of things",
        "def f(x)\n\nOverride this.",
    ],
)
def test_what_asks_nothing(text: str) -> None:
    assert title_pair("package.f", text) is None


def test_a_short_title_is_a_name() -> None:
    text = "Literacy is the ability to read and write. Since then, Literacy means more."
    pair = title_pair("Literacy", text)
    assert pair is not None
    assert (pair.question, pair.passage) == ("Literacy is the ability to read and write", "Since then, … means more.")
    pair = title_pair("am", "# am\n\n> Android activity manager.\n\n- Start it:\n\n`am start`")
    assert pair is not None
    assert pair.question == "Android activity manager"


def test_without_a_title_the_first_sentence_asks() -> None:
    pair = title_pair(None, "Numbers are everywhere. They count.")
    assert pair is not None
    assert (pair.question, pair.passage) == ("Numbers are everywhere", "They count.")


def test_headings() -> None:
    assert without_heading("A title", "A Title\n=======\n\nText") == "Text"
    assert without_heading("A title", "**A title.** Text") == "Text"
    assert without_heading("A title", "A titleless text") == "A titleless text"
