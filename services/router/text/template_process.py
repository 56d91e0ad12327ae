"""The process that renders chat templates: a program of its own, started by path, which imports jinja2 and nothing
of this project.

A template is a program by whoever made the checkpoint. Jinja's sandbox keeps it from reaching Python's internals, but
not from running for ever or filling the memory. Here the kernel does: a timer on the CPU time of each rendering,
whose signal nothing in this process handles, and a limit on the address space. Whoever started this kills it besides.

Frames on stdin and stdout are a length (4 bytes, big-endian) and JSON. In: `template`, `variables`, `longest` (in
characters), `cpu_s`. Out: `text`, or `error` (`syntax`, `refused`, `forbidden`, `long`, `memory`) and `message`.
"""

import json
import resource
import signal
import struct
import sys
from collections import OrderedDict
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MAX_COMPILED = 16


class Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; when rendering, its body is just there."""

    tags = {"generation"}  # noqa: RUF012 -- the base class has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Leave the body in place of the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=line)]


class Dict:
    """`dict` without the type behind it."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        """Make one."""
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Make one from keys."""
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """`namespace` that holds no names that mean something to Python."""

    def __init__(*args: Any, **named: Any) -> None:
        for name in dict(*args[1:], **named):
            _plain(name)
        Namespace.__init__(*args, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _plain(name)
        Namespace.__setitem__(self, name, value)


def _plain(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError("a namespace's names must not begin with an underscore")


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def environment() -> ImmutableSandboxedEnvironment:
    """What templates of published checkpoints are written for: transformers' environment."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": _refuse,
        "strftime_now": _now,
        "dict": Dict(),
        "namespace": PlainNamespace,
    }
    return made


class Renderer:
    """Compiled templates; the last 16 are kept."""

    def __init__(self) -> None:
        self._environment = environment()
        self._compiled: OrderedDict[str, jinja2.Template] = OrderedDict()

    def render(self, template: str, variables: dict[str, Any], longest: int) -> dict[str, str]:
        """The answer to one frame."""
        try:
            compiled = self._template(template)
        except TemplateSyntaxError as error:
            return _failure("syntax", f"{error.message} in line {error.lineno}")
        except RecursionError:
            return _failure("syntax", "it is nested too deeply")
        except (TypeError, ValueError, ArithmeticError) as error:  # of a constant that is computed beforehand
            return _failure("syntax", str(error))
        pieces: list[str] = []
        size = 0
        try:
            for piece in compiled.generate(variables):
                size += len(piece)
                if size > longest:
                    return _failure("long", "")
                pieces.append(piece)
            text = "".join(pieces)
            text.encode()
        except (SecurityError, OverflowError, RecursionError) as error:
            return _failure("forbidden", str(error))
        except Exception as error:  # whatever its author makes it raise
            if isinstance(error, MemoryError):
                raise
            return _failure("refused", str(error))
        return {"text": text}

    def _template(self, source: str) -> jinja2.Template:
        compiled = self._compiled.get(source)
        if compiled is None:
            compiled = self._compiled[source] = self._environment.from_string(source)
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(source)
        return compiled


def _failure(error: str, message: str) -> dict[str, str]:
    return {"error": error, "message": message[:500].encode(errors="replace").decode()}


def limit(memory_bytes: int) -> None:
    """Let this process map so much more than now, write no file, start no process and leave no dump."""
    with open("/proc/self/statm") as status:
        mapped = int(status.read().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, mapped + memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer frames until the input ends, or the memory does."""
    renderer = Renderer()
    while len(head := source.read(4)) == 4:
        asked = json.loads(source.read(struct.unpack(">I", head)[0]))
        signal.setitimer(signal.ITIMER_PROF, asked["cpu_s"])
        try:
            answer = renderer.render(asked["template"], asked["variables"], asked["longest"])
        except MemoryError:
            answer = _failure("memory", "")
        signal.setitimer(signal.ITIMER_PROF, 0)
        data = json.dumps(answer).encode()
        sink.write(struct.pack(">I", len(data)) + data)
        sink.flush()
        if answer.get("error") == "memory":
            return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever started this closes stdin
    limit(int(sys.argv[1]))
    serve(sys.stdin.buffer, sys.stdout.buffer)
