"""The sample corpus: what becomes a document, and that the same packages give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest

from raycurate.core.errors import InputError
from raycurate.stages.sample_corpus.corpus import PACKAGES, build_sample_corpus, source_documents

SOURCE = '''
"""A module with a docstring that is long enough to be kept."""

class Shape(Base, metaclass=Meta):
    """A shape in the plane, of which
        nothing is known.
    """

    def area(self, scale: float = 1.0, *, unit="m") -> float:
        """The area of the shape in square units of scale."""
        def inner():
            """A function inside a function is nobody's documentation."""

    def _private(self):
        """Private names are left out, however well documented."""

    def short(self):
        """Too short."""

if True:
    async def fetch(url):
        """Fetches the document that is found at the given URL."""
else:
    async def fetch(url):
        """Does not fetch the document, since there is no network."""
'''


def test_documents_of_a_module_by_hand():
    found = list(source_documents("pkg", PurePosixPath("pkg/geo/__init__.py"), SOURCE))
    assert [(d.title, d.kind) for d in found] == [
        ("pkg.geo", "module"),
        ("pkg.geo.Shape", "class"),
        ("pkg.geo.Shape.area", "method"),
        ("pkg.geo.fetch", "function"),
        ("pkg.geo.fetch", "function"),
    ]
    by_title = {d.title: d for d in found[:4]}
    assert by_title["pkg.geo.Shape"].text == "class Shape(Base)\n\nA shape in the plane, of which\nnothing is known."
    assert by_title["pkg.geo.Shape.area"].text == (
        "def area(self, scale: float=1.0, *, unit='m') -> float\n\nThe area of the shape in square units of scale."
    )
    assert by_title["pkg.geo.fetch"].text.startswith("async def fetch(url)\n\nFetches")
    assert by_title["pkg.geo.Shape"].source == "pkg/geo/__init__.py#L4"


def test_source_that_is_not_python_gives_nothing():
    assert list(source_documents("pkg", PurePosixPath("pkg/t.py"), "{{ template }} def")) == []
    assert list(source_documents("pkg", PurePosixPath("pkg/t.py"), "x = '\0'")) == []


def test_the_same_packages_give_the_same_bytes_in_any_order(tmp_path):
    first = build_sample_corpus(str(tmp_path / "a"), ["requests", "fsspec"])
    second = build_sample_corpus(str(tmp_path / "b"), ["fsspec", "requests", "fsspec"])
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint in str(first)
    assert build_sample_corpus(str(tmp_path / "c"), ["requests"]).fingerprint != first.fingerprint
    rows = [json.loads(line) for line in Path(first.path).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == first.documents == sum(first.packages.values()) > 200
    assert Path(first.path).stat().st_size == first.bytes
    assert len({r["id"] for r in rows}) == len(rows)
    assert all(r.keys() == {"id", "title", "text", "source", "package", "kind"} for r in rows)
    session = next(r for r in rows if r["id"] == "requests:requests.sessions.Session")
    assert session["text"].startswith("class Session(")
    assert "Provides cookie persistence" in session["text"]
    assert {r["package"] for r in rows if r["kind"] == "readme"} == {"requests", "fsspec"}


def test_the_default_packages_give_thousands_of_documents(tmp_path):
    corpus = build_sample_corpus(str(tmp_path))
    assert set(corpus.packages) == set(PACKAGES)
    assert all(count > 0 for count in corpus.packages.values())
    assert corpus.documents > 5000


def test_a_missing_package_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="no-such-package-xyz"):
        build_sample_corpus(str(tmp_path / "a"), ["requests", "no-such-package-xyz"])
    assert not (tmp_path / "a").exists()


def test_whole_packages_up_to_a_number_of_documents(tmp_path):
    names = ["tqdm", "requests", "fsspec"]
    counts = build_sample_corpus(str(tmp_path / "all"), names).packages
    two = counts["tqdm"] + counts["requests"]
    for most, fitting in ((sum(counts.values()), names), (sum(counts.values()) - 1, names[:2]), (two, names[:2])):
        corpus = build_sample_corpus(str(tmp_path / str(most)), names, most)
        assert list(corpus.packages) == sorted(fitting)
        assert corpus.packages == {name: counts[name] for name in fitting}
    with pytest.raises(InputError, match="'tqdm', the first package, has more than max_documents=5"):
        build_sample_corpus(str(tmp_path / "none"), names, 5)
