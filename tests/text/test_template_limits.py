"""Chat templates are bounded in time and memory, at compilation as well, and ordinary ones do not notice."""

from __future__ import annotations

import time

import pytest

from specport.errors import InvalidInput, ModelError, SpecportError
from specport.text import template_limits
from specport.text.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " ho\n"}]
AGAIN = "{% set ns = namespace(x='aa') %}{% for i in range(90) %}{% set ns.x = FORM %}{% endfor %}{{ ns.x }}"

ORDINARY = {
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}":
        "1/2False 2/2True ",
    "{% for m in messages if m.role == 'user' %}{{ m.role ~ ':' ~ m['content'] }}{% endfor %}": "user:hi",
    "{{ messages[1:]|map(attribute='content')|map('trim')|join('+') }}": "ho",
    "{{ messages[0]|tojson }}": '{"role": "user", "content": "hi"}',
    "{{ 'a-b'.replace('-', '+') ~ ', '.join(['c', 'd']) ~ '%s %d' % ('x', 3) ~ '{} {}'.format(1, 2) }}":
        "a+bc, dx 31 2",
    "{{ 2**10 + 3 * 4 }}{{ 'ab' * 2 }}{{ [1] + [2] }}{{ 'x'|center(3) }}": "1036abab[1, 2] x ",
    "{% set ns = namespace(f=false) %}{% set ns.f = true %}{{ ns.f }}{{ dict(a=1).items()|list }}":
        "True[('a', 1)]",
    "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}": "3210",
    "{% for k, v in {'a': [1, 2]}.items() %}{{ k }}{{ v|length }}{% endfor %}{% set a, b = 1, 2 %}{{ b }}":
        "a22",
    "{% set x %}{{ 'in' }}{% endset %}{{ x|upper }}{{ none_such is defined }}": "INFalse",
    "{{ 'no. 12345, %s' % 'x' }}{{ '<|reserved_20001|>{}'.format('x') }}":
        "no. 12345, x<|reserved_20001|>x",
    "{% if false %}{{ 10**(10**9) }}{{ 'x'|center(10**9) }}{% endif %}ok": "ok",
}  # fmt: skip

HOSTILE = (
    "{{ 10**(10**9) }}",
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * [1] }}",
    "{{ 'x'|center(10**9) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%(a)-1000000000d' % {'a': 1} }}",
    "{{ '%2.1000000000f' % 1 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ 1.5|round(10**9) }}",
    "{{ ('a' * 10**6).translate({97: 'b' * 10**6}) }}",
    "{{ ('\n' * 10**6)|indent(9999) }}",
    "{{ (['x' * 10**6] * 10**4)|map('upper')|list }}",
    "{{ range(90000)|map('center', 9000)|list|length }}",
    "{% autoescape 'x'|center(10**9) %}{% endautoescape %}",
    "{{ strftime_now('%c' * 10**6) }}",
    "{{ lipsum(10**5) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% for i in [1] recursive %}{{ loop([i]) }}{% endfor %}",
    *(
        AGAIN.replace("FORM", form)
        for form in (
            "ns.x + ns.x", "ns.x ~ ns.x", "[ns.x, ns.x]", "(ns.x, ns.x)", "{1: ns.x, 2: ns.x}", "[ns.x] * 2",
            "dict(a=ns.x, b=ns.x)", "ns.x.replace('a', 'aa')", "[ns.x, ns.x]|join", "ns.x|replace('a', 'aa')",
            "'%s%s' % (ns.x, ns.x)", "'{0}{0}'.format(ns.x)", "ns.x[:] ~ ns.x[:]",
        )
    ),
    AGAIN.replace("'aa'", "3").replace("FORM", "ns.x * ns.x"),
)  # fmt: skip


@pytest.mark.parametrize(("source", "text"), ORDINARY.items())
def test_ordinary_templates_are_rendered_as_before(source: str, text: str) -> None:
    assert ChatTemplate(source).render(MESSAGES, True) == text


@pytest.mark.parametrize("source", HOSTILE)
def test_what_makes_much_of_little_is_stopped(source: str) -> None:
    began = time.process_time()
    with pytest.raises(SpecportError, match="chat template"):
        ChatTemplate(source).render(MESSAGES, True)
    assert time.process_time() - began < 5.0


def test_loops_and_calls_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MOST_STEPS", 10_000)
    calls = "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    for source in (calls, loops, "{% for a in messages * 9999 %}{{ a.role }}{% endfor %}"):
        with pytest.raises(InvalidInput, match="stopped: it takes more than 10,000 steps"):
            ChatTemplate(source).render(MESSAGES, True)
    monkeypatch.setattr(template_limits, "MOST_SECONDS", -1.0)
    with pytest.raises(InvalidInput, match="takes more than -1 seconds"):
        ChatTemplate("{% for m in messages %}{% endfor %}").render(MESSAGES, True)


@pytest.mark.parametrize(
    "source",
    ["{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ " + "9" * 5000 + " }}", "{% for %}", " " * (1 << 21)],
)
def test_a_template_that_cannot_be_read_is_one_line(source: str) -> None:
    with pytest.raises(ModelError, match="chat template") as caught:
        ChatTemplate(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_threads_have_budgets_of_their_own() -> None:
    outer = ChatTemplate("{% for m in messages %}{{ inner() }}{% endfor %}")
    inner = ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}")
    made = outer.render(MESSAGES, True, inner=lambda: inner.render(MESSAGES, False))
    assert made == "userassistant" * 2


def test_long_conversations_are_rendered_in_time() -> None:
    looking_ahead = (
        "{% for m in messages %}{% for later in messages[loop.index:] %}{% break %}{% endfor %}"
        "{{ m.content[0].text }}{% endfor %}"
    )
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]} for _ in range(3000)]
    began = time.process_time()
    assert ChatTemplate(looking_ahead).render(messages, True) == "hi" * 3000
    assert time.process_time() - began < 4.0
