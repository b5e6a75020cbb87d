"""jinja's sandbox with limits on time and memory (`template_limits`), for templates that nobody has checked.

Loops, joined texts, slices and lists are wrapped in calls before a template is compiled; operators, calls
and filters are checked where jinja lets them be. Nothing is computed while a template is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import Context, LoopContext, markup_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import concat
from jinja2.visitor import NodeTransformer

from specport.text import template_limits as limits


class _Bounding(NodeTransformer):
    """Wrap what takes time or makes values into calls of the environment's methods."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call("counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _call("cut", node) if isinstance(node.arg, nodes.Slice) else node

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _call("made", node)

    visit_List = visit_Tuple = visit_Dict = _literal


@pass_context  # so that it is not called while a template is compiled
def _shown(context: Context, value: Any) -> Any:
    return limits.made(value)


def _call(name: str, *arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), [*arguments], [], None, None)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compile templates whose rendering is bounded; render them within `rendering`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_shown, **options)
        self.globals.pop("lipsum", None)  # makes any number of paragraphs
        for name, function in self.filters.items():
            self.filters[name] = bounded_filter(name, function)

    counted = staticmethod(limits.counted)
    cut = staticmethod(limits.cut)
    made = staticmethod(limits.made)

    @contextmanager
    def rendering(self) -> Any:
        """Begin with a fresh budget for the time of the context."""
        token = limits.CURRENT.set(limits.Budget())
        try:
            yield
        finally:
            limits.CURRENT.reset(token)

    @staticmethod
    def joined(*parts: Any) -> str:
        limits.require(limits.weight(parts))
        return str(limits.made(markup_join(parts)))

    @staticmethod
    def concat(parts: Any) -> str:
        """Join the pieces of a text, each counted as it comes."""
        found: list[str] = []
        size = 0
        for part in parts:
            size += len(part)
            limits.require(size)
            limits.CURRENT.get().step()
            found.append(part)
        return str(limits.made(concat(found)))

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Bounding().visit(source), *args, **options)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        limits.check_operator(operator, left, right)
        return limits.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        limits.CURRENT.get().step()
        if isinstance(__obj, LoopContext):  # a recursive loop
            args = tuple(map(limits.counted, args[:1])) + args[1:]
        own = getattr(__obj, "__self__", None)
        if isinstance(own, (str, bytes, int)):
            limits.check_call(getattr(__obj, "__name__", ""), own, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        counted = __obj is limits.made or __obj is limits.cut
        return result if counted else limits.made(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            limits.check_format(str(value.__self__), (*args, *kwargs.values()), "{")
            return wrapped(*args, **kwargs)

        return update_wrapper(checked, wrapped)


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that checks what it is asked for. jinja does not run it while it compiles."""
    wanted = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    def checked(context: Context, *args: Any, **options: Any) -> Any:
        limits.CURRENT.get().step()
        if args:
            if name == "join" and not isinstance(args[0], (str, list, tuple, dict)):
                args = ([*limits.counted(args[0])], *args[1:])
            limits.check_call(name, args[0], args[1:], options)
        first = {
            "context": (context,), "eval_context": (context.eval_ctx,), "environment": (context.environment,),
        }.get(wanted, ())  # fmt: skip
        return limits.made(function(*first, *args, **options))

    return pass_context(update_wrapper(checked, function))
