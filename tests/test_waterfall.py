"""Waterfalls: the tree of a trace, and bars that begin and end where their spans do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from support import figures, waterfall


def span(name, start, end, number, parent=None, trace=1):
    """What a span of OpenTelemetry has; times in milliseconds."""
    return SimpleNamespace(
        name=name,
        start_time=1_700_000_000_000_000_000 + int(start * 1e6),
        end_time=1_700_000_000_000_000_000 + int(end * 1e6),
        context=SimpleNamespace(span_id=number, trace_id=trace),
        parent=SimpleNamespace(span_id=parent) if parent else None,
    )


SPANS = [  # in the order in which they ended
    span("query", 5, 10, 3, parent=2),
    span("load", 2, 12, 2, parent=1),
    span("lost", 13, 18, 9, trace=2),
    span("render", 14, 19, 4, parent=1),
    span("request", 0, 20, 1),
    span("audit", 21, 30, 5, parent=1),
]


def test_the_tree_has_parents_first_and_sisters_in_order():
    assert [(depth, one.name) for depth, one in waterfall.tree(SPANS)] == [
        (0, "request"), (1, "load"), (2, "query"), (1, "render"), (1, "audit"), (0, "lost"),
    ]  # fmt: skip
    assert waterfall.lines(SPANS) == ["request", "└─ load", "   └─ query", "└─ render", "└─ audit", "lost"]


def test_a_parent_that_was_not_exported_makes_a_root_and_loses_no_span():
    rows = waterfall.tree([span("child", 0, 1, 2, parent=77), span("its own", 0.5, 0.8, 3, parent=2)])
    assert [(depth, one.name) for depth, one in rows] == [(0, "child"), (1, "its own")]


def test_bars_are_where_the_spans_are_and_other_traces_look_different():
    axes = Figure().subplots()
    waterfall.waterfall(axes, SPANS)
    bars = {
        label.get_text().lstrip(" └─"): bar for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)
    }
    assert {name: (round(bar.get_x(), 6), round(bar.get_width(), 6)) for name, bar in bars.items()} == {
        "request": (0, 20), "load": (2, 10), "query": (5, 5), "render": (14, 5), "audit": (21, 9), "lost": (13, 5),
    }  # fmt: skip
    for name, bar in bars.items():
        lost = name == "lost"
        assert bar.get_facecolor()[:3] == pytest.approx(to_rgb(figures.BLOCKED if lost else figures.NETWORK))
        assert bool(bar.get_hatch()) == lost
    assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] >= 30
    assert axes.yaxis_inverted()


def test_no_spans_are_told_in_a_sentence():
    with pytest.raises(ValueError, match="got no spans"):
        waterfall.waterfall(Figure().subplots(), [])


def test_it_draws_what_an_exporter_holds():
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("request"), tracer.start_as_current_span("query"):
        pass
    spans = exporter.get_finished_spans()
    assert waterfall.lines(spans) == ["request", "└─ query"]
    waterfall.waterfall(Figure().subplots(), spans)
