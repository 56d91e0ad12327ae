"""Chat templates: the same text as transformers renders, and an end to what does not end."""

import json
import os
import threading
import time
from collections.abc import Iterator

import pytest
from stagemesh.services.router.text.templates import (
    MAX_TEMPLATE_CHARACTERS,
    Templates,
    TemplateTooSlow,
)

from stagemesh.errors import CheckpointError, InvalidArgument, OutOfRange, StagemeshError

MESSAGES = [
    {"role": "system", "content": "be <short> & 'kind'"},
    {"role": "user", "content": " Grüße 😀\n"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "more"},
]
VARIABLES = {
    "messages": MESSAGES,
    "tools": None,
    "documents": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
}
ENDLESS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
# The constructions that published templates are made of.
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m.content | trim }}{% endfor %}",
    "{%- set ns = namespace(n=0) %}\n{%- for m in messages %}\n    {%- set ns.n = ns.n + 1 %}\n{{ ns.n }}:{{ m }}\n{%- endfor %}",
    "{% for m in messages %}{% if loop.first and m.role == 'system' %}{% continue %}{% endif %}{{ loop.index0 }}"
    "{% if loop.last %}{% break %}{% endif %}{{ m.content | tojson }}{% endfor %}",
    "{% macro show(m, deep=true) -%}\n  [{{ m.role }}]{{ caller() if caller else '' }}\n{%- endmacro %}"
    "{% for m in messages[1:] %}{{ show(m) }}{% endfor %}",
    "{% for m in messages if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set x = dict(a=1, b=[1, 2]) %}{{ x | tojson(indent=2) }}{{ dict.fromkeys(['k'], 1) }}{{ x.items() | list }}",
    "{% if tools is not none %}tools{% elif strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}",
    "{{ messages[0]['content'].split(' ')[1].upper() }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{# a comment #}\n   {% if add_generation_prompt %}\n<|assistant|>\n   {% endif %}\n{{ missing }}{{ missing is defined }}",
]


@pytest.fixture(scope="module")
def templates() -> Iterator[Templates]:
    made = Templates(cpu_s=0.5)
    yield made
    made.close()


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_text_is_the_one_that_transformers_renders(templates: Templates, template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template(
        conversations=[MESSAGES], chat_template=template, add_generation_prompt=True, bos_token="<s>"
    )
    assert templates.render(template, VARIABLES, 10_000) == expected


@pytest.mark.parametrize(
    ("template", "error", "says"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", CheckpointError, "Range too big"),
        (ENDLESS, TemplateTooSlow, "too long"),
        ("{{ 7 ** (7 ** 9) }}", TemplateTooSlow, "too long"),
        ("{{ ('x' * 10**10) | length }}", CheckpointError, "memory"),
        ("{{ '%9999999999d' % 5 }}", CheckpointError, "memory"),
        (
            "{% set n = namespace(s='xy') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            (CheckpointError, TemplateTooSlow),  # whichever limit a busy machine reaches first
            "memory|too long",
        ),
        ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", CheckpointError, "recursion"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, CheckpointError, "deeply"),
        ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", OutOfRange, "too long"),
        ("x" * (MAX_TEMPLATE_CHARACTERS + 1), CheckpointError, "longer than"),
        ("{% for %}", CheckpointError, "line 1"),
        ("{{ raise_exception('roles must alternate') }}", InvalidArgument, "roles must alternate"),
        ("{{ messages[9].content }}", InvalidArgument, "refuses"),
        ("{{ '\\ud800' }}", InvalidArgument, "surrogates"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", CheckpointError, "unsafe"),
        ("{% set n = namespace(__class__=1) %}", CheckpointError, "underscore"),
        ("{% set _ = messages.append(1) %}", CheckpointError, "not safely callable|unsafe"),
    ],
)
def test_a_hostile_template_ends_with_an_error_and_the_next_is_rendered(
    templates: Templates,
    template: str,
    error: type[StagemeshError] | tuple[type[StagemeshError], ...],
    says: str,
) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=says) as caught:
        templates.render(template, VARIABLES, 100_000)
    assert time.monotonic() - began < 20  # a busy machine has its share of the limits' seconds
    assert type(caught.value) in (error if isinstance(error, tuple) else (error,))
    assert caught.value.field == "messages"
    assert templates.render("{{ messages[3].content }}", VARIABLES, 100) == "more"


def test_an_endless_template_leaves_the_others_alone_and_no_process_behind() -> None:
    templates = Templates(cpu_s=1.0)
    templates.warm()
    failed: list[Exception] = []

    def hang() -> None:
        try:
            templates.render(ENDLESS, {}, 10)
        except TemplateTooSlow as error:
            failed.append(error)

    hanging = threading.Thread(target=hang)
    hanging.start()
    time.sleep(0.1)
    rendered = 0
    while hanging.is_alive():
        assert templates.render("{{ 1 + 1 }}", {}, 10) == "2"
        rendered += 1
    assert rendered > 5
    assert len(failed) == 1
    children = [process._child.pid for process in templates._idle]
    templates.close()
    assert children
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


def test_one_process_serves_many_and_a_lost_one_is_replaced(templates: Templates) -> None:
    templates.render("{{ 1 }}", {}, 10)
    started = templates.started
    for number in range(50):
        assert templates.render("{{ number }}", {"number": number}, 10) == str(number)
    assert templates.started == started
    templates._idle[-1]._child.kill()
    templates._idle[-1]._child.wait()
    assert templates.render("{{ 5 }}", {}, 10) == "5"


def test_the_process_knows_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEMESH_SECRET", "swordfish")
    templates = Templates()
    templates.warm()
    with open(f"/proc/{templates._idle[0]._child.pid}/environ", "rb") as file:
        assert b"swordfish" not in file.read()
    templates.close()


def test_variables_and_text_survive_as_they_are(templates: Templates) -> None:
    odd = '\x00\u2028"\\ 日本 ' * 5000
    assert templates.render("{{ a }}", {"a": odd}, len(odd)) == odd
    with pytest.raises(OutOfRange):
        templates.render("{{ a }}", {"a": odd}, len(odd) - 1)
    assert json.loads(templates.render("{{ a | tojson }}", {"a": [odd, None, 1.5]}, 10**6)) == [
        odd,
        None,
        1.5,
    ]
