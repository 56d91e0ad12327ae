"""Training text for the demo model: what every CPython installation already carries.

Three sources, all under the Python Software Foundation licence:

* the sources of the standard library, cut at top-level statements so that a document is a few functions or one
  class and generation learns where to end;
* ``pydoc_data.topics``, the part of the language reference behind ``help()`` (English prose);
* question and answer pairs made from docstrings, function bodies and reference topics, so that the chat role
  tokens get a meaning.

The split into training and validation is by module (or topic) name, never by piece, so that no validation text is
the rest of a training function. It depends on names only: another machine with the same CPython gets the same one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

EXCLUDED_DIRS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__",
     "lib-dynload", "ensurepip", "__phello__", "pgen2"}
)  # fmt: skip
EXCLUDED_FILES = frozenset({"stringprep.py", "entities.py", "this.py", "__hello__.py"})  # tables and toys
EXCLUDED_PREFIXES = ("_sysconfigdata", "test_", "config-")  # build-machine paths, tests
MAX_DIGIT_SHARE = 0.12  # of the characters; above it a file is a table of numbers, not code
MIN_PIECE_CHARS = 600  # a document is cut at the next def or class after this many characters
MAX_ANSWER_CHARS = 1400  # keeps a question and its answer inside one context window
VALIDATION_MODULUS = 20  # one module or topic in 20 is held out
PROSE_REPEATS = 2  # English is a tenth of the text; training sees it this many times per epoch
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are a Python expert.", "Answer briefly.")


@dataclass(frozen=True)
class Document:
    """One training document: plain text, or an answer with the question (and system prompt) before it."""

    text: str
    question: str | None = None
    system: str | None = None


@dataclass
class Corpus:
    """Documents for training and for validation, with no document in both."""

    train: list[Document] = field(default_factory=list)
    validation: list[Document] = field(default_factory=list)


def _digest(text: str) -> int:
    """A number that is the same in every process, unlike ``hash``."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


def is_held_out(name: str) -> bool:
    """Whether the module or topic called ``name`` belongs to the validation set."""
    return _digest(f"split:{name}") % VALIDATION_MODULUS == 0


def iter_sources() -> Iterator[tuple[str, str]]:
    """Dotted name and source of every standard library module that is neither test nor generated table."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if EXCLUDED_DIRS.intersection(relative.parts) or path.name in EXCLUDED_FILES:
            continue
        if any(part.startswith(EXCLUDED_PREFIXES) for part in relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8").expandtabs(4)
        except UnicodeDecodeError:
            continue
        if text and sum(c.isdigit() for c in text) / len(text) <= MAX_DIGIT_SHARE:
            yield ".".join(relative.with_suffix("").parts).removesuffix(".__init__"), text


def split_module(text: str, tree: ast.Module) -> Iterator[str]:
    """Cut a module before a top-level def or class once the piece is long enough.

    Everything before the first statement (copyright lines, authors' addresses) is left out.
    """
    lines = text.splitlines()
    start = previous_end = None
    for node in tree.body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        if start is None:
            start = first
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
            sum(len(line) + 1 for line in lines[start:previous_end]) >= MIN_PIECE_CHARS
        ):
            yield "\n".join(lines[start:previous_end])
            start = first
        previous_end = node.end_lineno
    if start is not None:
        yield "\n".join(lines[start:previous_end])


def _chat(question: str, answer: str) -> Document:
    """A question and answer; every third one, chosen by its text, also has a system prompt."""
    number = _digest(question)
    system = SYSTEM_PROMPTS[number // 3 % len(SYSTEM_PROMPTS)] if number % 3 == 0 else None
    return Document(answer.strip(), question, system)


def _head(text: str) -> str:
    """The leading paragraphs of ``text`` that fit into an answer."""
    taken = ""
    for paragraph in text.strip().split("\n\n"):
        if taken and len(taken) + len(paragraph) > MAX_ANSWER_CHARS // 2:
            break
        taken += paragraph + "\n\n"
    return taken.strip()[:MAX_ANSWER_CHARS]


def chats_from_module(name: str, text: str, tree: ast.Module) -> Iterator[Document]:
    """Questions that the module's own docstrings and functions answer."""
    module_doc = ast.get_docstring(tree)
    if module_doc and len(module_doc) > 60:
        yield _chat(f"What is the module {name} for?", _head(module_doc))
    lines = text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        doc = ast.get_docstring(node)
        if not doc or len(doc) < 30 or node.name.startswith("test"):
            continue
        if isinstance(node, ast.ClassDef):
            yield _chat(f"What is the class {node.name} for?", _head(doc))
            continue
        source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        if len(source) <= MAX_ANSWER_CHARS and _digest(source) % 2:
            wish = " ".join(doc.split("\n\n")[0].split())
            ask = (
                f"Write the Python function {node.name}." if len(wish) > 160 else f"Write a function. {wish}"
            )
            yield _chat(ask, source)
        else:
            yield _chat(f"What does {node.name} do?", _head(doc))


def chats_from_builtins() -> Iterator[tuple[str, Document]]:
    """Questions about functions written in C: their docstrings exist at run time only."""
    for module_name in sorted(sys.builtin_module_names):
        if module_name.startswith("_") and module_name not in {"_io", "_collections", "_functools"}:
            continue
        for name, value in sorted(vars(importlib.import_module(module_name)).items()):
            doc = inspect.getdoc(value)
            if name.startswith("_") or not callable(value) or not doc or len(doc) < 40:
                continue
            public = name if module_name == "builtins" else f"{module_name.lstrip('_')}.{name}"
            yield public, _chat(f"What does {public} do?", _head(doc))


def iter_topics() -> Iterator[tuple[str, str, str]]:
    """Key, title and text of each reference topic, without paragraphs that a shorter topic already had."""
    from pydoc_data.topics import topics

    seen: set[int] = set()
    for key, text in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        paragraphs = [p for p in text.strip().split("\n\n") if _digest(p) not in seen]
        seen.update(map(_digest, paragraphs))
        body = "\n\n".join(paragraphs)
        if len(body) < 200:
            continue
        title = re.match(r"(.+)\n[*=\-]{3,}\n", body)
        yield key, title.group(1).strip() if title else "", body


def passages(text: str) -> Iterator[str]:
    """Runs of paragraphs of at least ``MIN_PIECE_CHARS``, so that prose also begins and ends without a title."""
    taken: list[str] = []
    for paragraph in re.split(r"\n\n(?=\S)", text):
        if re.match(r".+\n[*=\-~]{3,}", paragraph):
            continue
        taken.append(paragraph)
        if sum(map(len, taken)) >= MIN_PIECE_CHARS:
            yield "\n\n".join(taken)
            taken = []
    if taken:
        yield "\n\n".join(taken)


def build_corpus() -> Corpus:
    """Collect, split and deduplicate everything; the same CPython gives the same corpus."""
    corpus, seen = Corpus(), set()

    def add(name: str, document: Document, repeats: int = 1) -> None:
        number = _digest(f"{document.question}\0" + " ".join(document.text.split()))
        if number in seen or len(document.text) < 30:
            return
        seen.add(number)
        if is_held_out(name):
            corpus.validation.append(document)
        else:
            corpus.train.extend([document] * repeats)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old sources hold invalid escape sequences
        for name, text in iter_sources():
            try:
                tree = ast.parse(text)
            except SyntaxError:
                continue
            for piece in split_module(text, tree):
                add(name, Document(piece))
            for chat in chats_from_module(name, text, tree):
                add(name, chat)
    for name, chat in chats_from_builtins():
        add(name, chat)
    for key, title, text in iter_topics():
        add(key, Document(text), PROSE_REPEATS)
        for passage in passages(text):
            add(key, Document(passage))
        if title:
            body = text.split("\n", 2)[2]
            add(key, _chat(f"Tell me about this: {title}", _head(body)), PROSE_REPEATS)
            add(key, _chat(f"What does the Python reference say about {key}?", _head(body)), PROSE_REPEATS)
    return corpus
