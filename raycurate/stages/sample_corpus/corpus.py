"""A real corpus without a download: the documentation of installed Python packages.

One document an object: each module, class, function and method with a docstring, and the documentation
files that packages carry. Sources are parsed, never imported, so the corpus depends on the installed
versions and on nothing else. Docstrings that subclasses repeat are kept: the dedup stage is to find them.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path, PurePosixPath

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError

PACKAGES = (
    "pyarrow",
    "tokenizers",
    "safetensors",
    "sentence-transformers",
    "numpy",
    "huggingface_hub",
    "pydantic",
    "fsspec",
    "requests",
    "tqdm",
    "accelerate",
    "ray",
    "transformers",
    "torch",
)
"""Packages that every installation has, because raycurate itself depends on them; the largest come last."""

MIN_CHARS = 40
_SKIPPED_FOLDERS = {"test", "tests", "_vendor", "vendored", "third_party", "thirdparty_files", "__pycache__", "bin"}
_SKIPPED_PREFIXES = (
    "ray/dashboard/client/",  # a web page's build
    "transformers/models/",  # more than all the rest together, copied from one model to the next
)
_PRIVATE_MODULES_KEPT = {"numpy"}  # its public functions are defined in numpy/_core and numpy/lib/_*_impl.py
_SKIPPED_NAMES = (
    "cmakelists",
    "license",
    "licence",
    "copying",
    "notice",
    "authors",
    "requirements",
    "third_party",
    "thirdparty",
)
_DOCUMENTATION = {".md", ".rst", ".txt"}


@dataclass(frozen=True)
class SampleDocument:
    """One document; the fields are those of the file's lines."""

    id: str
    title: str
    text: str
    source: str
    package: str
    kind: str


@dataclass(frozen=True)
class SampleCorpus:
    """A corpus that was written: `path` is the file, `packages` the documents of each package."""

    path: str
    documents: int
    bytes: int
    fingerprint: str
    packages: dict[str, int]

    def __str__(self) -> str:
        lines = [f"{name:24s} {count:6d}" for name, count in self.packages.items()]
        total = f"{self.documents} documents, {self.bytes} bytes, fingerprint {self.fingerprint}"
        return "\n".join([*lines, total, self.path])


def build_sample_corpus(
    output: str, packages: list[str] | None = None, max_documents: int | None = None
) -> SampleCorpus:
    """Write `documents.jsonl` into the folder `output`; the same versions give the same bytes.

    Args:
        output: local path or URI of a folder.
        packages: names of installed distributions; by default `PACKAGES`.
        max_documents: take packages, whole and in the order named, up to the first that would make more documents.

    Raises:
        InputError: a package is not installed, or has no list of its files; the first one alone has too many documents.
    """
    names = list(dict.fromkeys(packages or PACKAGES))
    distributions = {name: _distribution(name) for name in names}
    if max_documents is not None:
        fitting = _fitting(distributions, max_documents)
        distributions = {name: distributions[name] for name in fitting}
    distributions = dict(sorted(distributions.items()))
    path = storage.join(storage.normalise(output), "documents.jsonl")
    digest, counts, size = hashlib.sha256(), Counter(dict.fromkeys(distributions, 0)), 0
    with storage.open_output(path) as stream:
        for name, distribution in distributions.items():
            for document in package_documents(name, distribution):
                line = json.dumps(asdict(document), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
                stream.write(line)
                digest.update(line)
                counts[name] += 1
                size += len(line)
    versions = {name: found.version for name, found in distributions.items()}
    return SampleCorpus(path, counts.total(), size, fingerprint([versions, digest.hexdigest()]), dict(counts))


def _distribution(name: str) -> metadata.Distribution:
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise InputError(
            f"the package '{name}' is not installed, so its documentation cannot be read",
            where="sample-corpus",
            fix=f"pip install {name}, or name other packages",
        ) from None
    if found.files is None:
        raise InputError(
            f"the installation of '{name}' has no list of its files (RECORD)",
            where="sample-corpus",
            fix="Install it with pip, or name other packages",
        )
    return found


def _fitting(distributions: dict[str, metadata.Distribution], most: int) -> list[str]:
    """The packages from the first on that have `most` documents together; what is left over is not read."""
    fitting, left = list[str](), most
    for name, distribution in distributions.items():
        left -= sum(1 for _ in islice(package_documents(name, distribution), left + 1))
        if left < 0:
            break
        fitting.append(name)
    if not fitting:
        raise InputError(
            f"'{next(iter(distributions))}', the first package, has more than max_documents={most} documents",
            where="sample-corpus",
            fix="Raise max_documents, or name a smaller package first",
        )
    return fitting


def package_documents(name: str, distribution: metadata.Distribution) -> Iterator[SampleDocument]:
    """The documents of one installed distribution, in the order of its files' paths, ids unique."""
    seen: Counter[str] = Counter()
    for found in _all_documents(name, distribution):
        seen[found.id] += 1
        count = seen[found.id]
        yield found if count == 1 else SampleDocument(**{**asdict(found), "id": f"{found.id}#{count}"})


def _all_documents(name: str, distribution: metadata.Distribution) -> Iterator[SampleDocument]:
    readme = distribution.metadata.json.get("description", "")
    if isinstance(readme, str) and len(readme.strip()) >= MIN_CHARS:
        title = f"{name}: {distribution.metadata['Summary'] or 'description'}"
        yield SampleDocument(f"{name}:METADATA", title, readme.strip(), f"{name}/METADATA", name, "readme")
    for path in sorted(PurePosixPath(f) for f in distribution.files or ()):
        if path.suffix not in {".py", *_DOCUMENTATION} or _is_skipped(path):
            continue
        try:
            content = Path(str(distribution.locate_file(path.as_posix()))).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            continue  # listed but removed since, or not UTF-8: no documentation to be had there
        if path.suffix == ".py":
            yield from source_documents(name, path, content)
        elif len(content.strip()) >= MIN_CHARS:
            yield SampleDocument(f"{name}:{path}", path.stem, content.strip(), path.as_posix(), name, "file")


def _is_skipped(path: PurePosixPath) -> bool:
    stem = path.name.lower()
    return (
        path.is_absolute()
        or ".." in path.parts
        or path.as_posix().startswith(_SKIPPED_PREFIXES)
        or not _SKIPPED_FOLDERS.isdisjoint(path.parts)
        or (path.parts[0] not in _PRIVATE_MODULES_KEPT and any(_is_private(part) for part in path.parts))
        or any(part.endswith((".dist-info", ".data")) for part in path.parts)
        or stem.startswith(("test_", "conftest", *_SKIPPED_NAMES))
    )


def _is_private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def source_documents(package: str, path: PurePosixPath, source: str) -> Iterator[SampleDocument]:
    """One document for each public object of a module that has a docstring of `MIN_CHARS` characters or more.

    The title is the qualified name; the text is the signature and the docstring, its indentation removed.
    """
    parts = path.with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return  # a template, or for another version of Python
    for name, kind, node in _objects(tree, module):
        docstring = ast.get_docstring(node, clean=False)
        cleaned = inspect.cleandoc(docstring) if docstring else ""
        if len(cleaned) < MIN_CHARS:
            continue
        text = "\n\n".join(part for part in (_signature(node), cleaned) if part)
        place = f"{path}#L{node.lineno}" if not isinstance(node, ast.Module) else str(path)
        yield SampleDocument(f"{package}:{name}", name, text, place, package, kind)


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _objects(node: _Documented, name: str, kind: str = "module") -> Iterator[tuple[str, str, _Documented]]:
    """The object itself and every public object in it, also those behind an `if` or `try` at its top level."""
    yield name, kind, node
    if kind in ("function", "method"):
        return
    for child in _statements(node):
        if child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from _objects(child, f"{name}.{child.name}", "class")
        else:
            yield from _objects(child, f"{name}.{child.name}", "method" if kind == "class" else "function")


def _statements(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _statements(child)


def _signature(node: _Documented) -> str:
    if isinstance(node, ast.Module):
        return ""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    start = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{start} {node.name}({ast.unparse(node.args)}){returns}"
