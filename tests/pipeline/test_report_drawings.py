import math
import re
from xml.etree import ElementTree

import pytest

from kdpipe.pipeline.report import bars, curves, dag, heatmap, memory, scales, scatter, svg
from kdpipe.pipeline.report.dag import Node
from kdpipe.pipeline.report.document import Arena


def parse(drawing):
    """Every drawing is well-formed XML by itself."""
    return ElementTree.fromstring(str(drawing).replace("&nbsp;", " "))  # noqa: S314 - our own drawing


CHAIN = [
    Node("data.digits", "digits", "cached"),
    Node("teachers", "teacher-ensemble", "ran", ("data.digits",), time="41.2 s"),
    Node("samples", "synthesize", "ran", ("teachers",)),
    Node("student", "distill", "failed", ("teachers", "samples", "data.digits")),
    Node("mcu", "validate", "skipped", ("student", "data.digits")),
]


def test_element_escapes_text_and_attributes():
    assert str(svg.element("a", "<b>&", href='"><script>')) == '<a href="&#34;&gt;&lt;script&gt;">&lt;b&gt;&amp;</a>'


def test_shorten_keeps_both_ends_and_counts_wide_characters_twice():
    assert svg.shorten("abc", 3) == "abc"
    cut = svg.shorten("数字识别的网络", 8)
    assert svg.columns(cut) <= 8
    assert cut[0] == "数"
    for width in range(1, 20):
        assert svg.columns(svg.shorten("a-very-long-name-数字", width)) <= width


def test_polyline_is_interrupted_by_what_is_not_finite():
    path = str(svg.polyline([(0, 0), (1, 1), (2, math.nan), (3, 3)]))
    assert path.count("M") == 2
    assert "nan" not in path


@pytest.mark.parametrize(
    "data", [[0.0, 1.0], [5.0], [], [-3, 1e9], [1e-9, 2e-9], [math.nan, 2.0], [0.993, 0.9931], [1e300, -1e300]]
)
def test_linear_scale_contains_the_data_and_has_a_few_round_ticks(data):
    scale = scales.linear(data, 200.0, 0.0)
    finite = [datum for datum in data if math.isfinite(datum)]
    assert all(-1e-6 <= scale(datum) <= 200.000001 for datum in finite)
    assert 2 <= len(scale.ticks) <= 10
    assert list(scale.ticks) == sorted(set(scale.ticks))


def test_linear_scale_never_passes_its_ceiling():
    assert max(scales.linear([0.98, 0.997], 0, 1, ceiling=1.0).ticks) <= 1.0
    assert max(scales.linear([1.0, 1.0], 0, 1, ceiling=1.0).ticks) <= 1.0


@pytest.mark.parametrize("data", [[12.5, 2403.0], [1.0], [0.001, 1e6], []])
def test_logarithmic_scale_contains_the_data(data):
    scale = scales.logarithmic(data, 0.0, 100.0)
    assert all(0 <= scale(datum) <= 100 for datum in data)
    assert math.isnan(scale(0.0))
    assert scale.ticks


def test_layers_follow_the_longest_path():
    assert dag.layers(CHAIN) == {"data.digits": 0, "teachers": 1, "samples": 2, "student": 3, "mcu": 4}


def test_arrows_that_follow_from_others_are_left_out():
    needs = {node.name: node.needs for node in dag.reduced(CHAIN)}
    assert needs == {
        "data.digits": (),
        "teachers": ("data.digits",),
        "samples": ("teachers",),
        "student": ("samples",),
        "mcu": ("student",),
    }


def test_long_edges_pass_through_dummy_nodes_and_no_box_covers_them():
    diamond = [
        Node("a", "", "ran"),
        Node("b", "", "ran", ("a",)),
        Node("c", "", "ran", ("b",)),
        Node("x", "", "ran"),
        Node("d", "", "ran", ("c", "x")),
    ]
    columns = dag.arrange(diamond)
    assert [sorted(column) for column in columns] == [["a", "x"], ["b", "x>d@1"], ["c", "x>d@2"], ["d"]]


def test_order_within_layers_avoids_the_crossing():
    nodes = [
        Node("a", "", "ran"),
        Node("b", "", "ran"),
        Node("under-b", "", "ran", ("b",)),
        Node("under-a", "", "ran", ("a",)),
    ]
    first, second = dag.arrange(nodes)
    assert [name.removeprefix("under-") for name in second] == first


def test_layered_drawing_has_a_box_for_each_stage_and_no_two_overlap():
    root = parse(dag.layered(CHAIN))
    boxes = [
        tuple(float(item.get(key)) for key in ("x", "y", "width", "height"))
        for item in root.iter("rect")
        if item.get("class") == "box"
    ]
    assert len(boxes) == len(CHAIN)
    for index, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[index + 1 :]:
            apart_x = x + width <= other_x or other_x + other_width <= x
            apart_y = y + height <= other_y or other_y + other_height <= y
            assert apart_x or apart_y
    classes = re.findall(r'class="node (is-\w+)"', str(dag.layered(CHAIN)))
    assert classes == ["is-cached", "is-ran", "is-ran", "is-failed", "is-skipped"]


def test_drawing_that_would_not_fit_a_page_is_left_to_the_rail():
    chain = [Node(f"s{i}", "distill", "ran", (f"s{i - 1}",) if i else ()) for i in range(50)]
    assert dag.layered(chain) is None
    root = parse(dag.rail(chain))
    assert sum(item.get("class") == "hit" for item in root.iter("rect")) == 50


@pytest.mark.parametrize("draw", [dag.layered, dag.rail])
def test_drawings_survive_cycles_unknown_needs_duplicates_and_nothing(draw):
    assert draw([]) is None
    odd = [Node("a", "", "ran", ("b", "a")), Node("b", "", "new-status", ("a", "gone")), Node("b", "", "ran")]
    parse(draw(odd))


def test_curves_are_split_by_metric_and_keep_their_series():
    history = {
        "t0": [{"epoch": 1, "loss": 2.0, "accuracy": 0.5}, {"epoch": 2, "loss": 1.0, "accuracy": 0.75}],
        "t1": [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": None}],
    }
    found = curves.curves_by_metric(history)
    assert {metric: [line.name for line in lines] for metric, lines in found.items()} == {
        "loss": ["t0", "t1"],
        "accuracy": ["t0"],
    }
    assert found["loss"][0].points == ((1.0, 2.0), (2.0, 1.0))
    parse(curves.chart("loss", found["loss"]))


def test_thinning_keeps_ends_and_peaks():
    points = [(float(step), 0.0) for step in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    thinned = curves.thin(points)
    assert len(thinned) <= curves.MOST_POINTS + 2
    assert (54_321.0, 9.0) in thinned
    assert thinned[0] == points[0]
    assert thinned[-1] == points[-1]
    assert thinned == sorted(thinned)


def test_chart_of_accuracy_is_in_percent_and_never_above_100():
    line = curves.Curve("s", ((1.0, 0.2), (2.0, 0.999)))
    labels = [item.text for item in parse(curves.chart("accuracy", [line])).iter() if item.get("class") == "tick end"]
    assert labels[-1] == "100%"


def test_chart_of_one_point_draws_it():
    root = parse(curves.chart("loss", [curves.Curve("s", ((1.0, 0.5),))]))
    assert [item.get("class") for item in root.iter("circle")] == ["dot"]


def test_scatter_draws_each_mark_inside_and_labels_do_not_overlap():
    marks = [scatter.Mark(f"target-{i}", 12_000 + 500 * i, 0.95 + 0.001 * i, i) for i in range(8)]
    root = parse(scatter.chart(marks, baseline=0.96))
    shapes = [item.get("transform") for item in root.iter("path")]
    assert len(shapes) == 8
    for place in shapes:
        x, y = map(float, re.findall(r"-?[\d.]+", place))
        assert 0 < x < scatter.WIDTH
        assert 0 < y < scatter.HEIGHT
    at = [(100.0, 100.0)] * 5
    frame = (0.0, 0.0, 360.0, 260.0)
    placed = scatter.place_labels(["abc"] * 5, at, frame)
    known = [place for place in placed if place]
    assert len(known) == len(set(known)) >= 4


def test_scatter_of_one_mark_and_of_equal_ones():
    parse(scatter.chart([scatter.Mark("a", 1, 1.0, 0)]))
    parse(scatter.chart([scatter.Mark("a", 1e12, 0.0, 0), scatter.Mark("b", 1e12, 0.0, 1)]))


def test_bars_are_as_long_as_their_values_and_mark_a_broken_limit():
    root = parse(
        bars.chart("RAM", [bars.Bar("a", 50, "50", limit=100, limit_text="100"), bars.Bar("b", 200, "200", limit=100)])
    )
    lengths = [float(item.get("width")) for item in root.iter("rect") if item.get("class") == "bar"]
    assert lengths[0] / lengths[1] == pytest.approx(0.25, abs=0.001)
    assert [group.get("class") for group in root.iter("g")] == ["series-0", "is-over"]


def test_bars_of_nothing_but_zero():
    parse(bars.chart("cycles", [bars.Bar("a", 0.0, "0")]))


def cells(drawing):
    """Return (text, opacity, class) of each cell."""
    found = []
    for group in parse(drawing).iter("g"):
        rect, text = group.find("rect"), group.find("text")
        found.append((text.text, float(rect.get("fill-opacity")), rect.get("class")))
    return found


def test_a_heat_map_is_the_stronger_the_larger_the_value_and_frames_what_was_chosen():
    values = [[0.5, 0.25], [None, 1.0]]
    drawn = cells(heatmap.chart("loss", ["a", "b"], ["2 bits", "3 bits"], values, marked=[(0, 1)]))
    assert [text for text, _, _ in drawn] == ["0.5", "0.25", "–", "1"]  # noqa: RUF001
    assert [name for _, _, name in drawn] == ["cell", "cell is-chosen", "cell", "cell"]
    half, low, missing, high = (opacity for _, opacity, _ in drawn)
    assert missing == 0
    assert (low, high) == (heatmap.FAINTEST, heatmap.STRONGEST)
    assert half == pytest.approx(low + (high - low) / 3, abs=0.01)


def test_a_heat_map_over_decades_tells_small_values_apart():
    *_, middle, _ = (opacity for _, opacity, _ in cells(heatmap.chart("loss", ["a"], list("xyz"), [[1e-6, 1e-3, 1.0]])))
    assert middle == pytest.approx((heatmap.FAINTEST + heatmap.STRONGEST) / 2, abs=0.01)


@pytest.mark.parametrize(
    ("rows", "columns", "values"),
    [
        ([], [], []),
        (["a"], ["x"], [[None]]),
        (["a"], ["x"], [[math.nan]]),
        (["a"], ["x", "y"], [[0.0, 0.0]]),
        (["a", "b"], ["x"], [[-1e308], [1e308]]),
        (["a"], ["x"], [[1.0, 2.0, 3.0]]),
        (["a", "b", "c"], ["x", "y"], [[1.0]]),
        (["a" * 99], ["b" * 99] * 30, [[12345678.9] * 30]),
    ],
)
def test_a_heat_map_survives_what_is_odd(rows, columns, values):
    root = parse(heatmap.chart("odd", rows, columns, values, ["note"], [(9, 9)]))
    assert all(0 <= float(item.get("fill-opacity")) <= heatmap.STRONGEST for item in root.iter("rect"))


def test_a_memory_plan_has_a_rectangle_for_each_buffer():
    arena = Arena.model_validate(
        {
            "bytes": 40,
            "lower_bound": 32,
            "layers": ["conv", "fc"],
            "buffers": [
                {"name": "tensor <conv>", "offset": 0, "bytes": 20, "first": 0, "last": 1},
                {"name": "scratch fc", "offset": 20, "bytes": 20, "first": 1, "last": 1},
                {"name": "rows conv", "offset": 20, "bytes": 4, "first": 0, "last": 0},
            ],
        }
    )
    first, second, third = parse(memory.chart("a plan", arena)).iter("rect")
    assert third.get("class") == "buffer is-rows"
    assert first[0].text == "tensor <conv>: bytes 0 to 20, conv to fc"
    assert second.get("class") == "buffer is-scratch"
    # the first is twice as long, and lies below
    assert float(first.get("width")) == pytest.approx(2 * float(second.get("width")) + memory.GAP)
    assert float(first.get("y")) > float(second.get("y"))


@pytest.mark.parametrize("change", [{"bytes": 0}, {"layers": []}, {"buffers": []}])
def test_there_is_no_drawing_of_an_empty_plan(change):
    buffer = {"name": "a", "offset": 0, "bytes": 4, "first": 0, "last": 9}
    plan = {"bytes": 4, "lower_bound": 4, "layers": ["conv"], "buffers": [buffer]}
    assert memory.chart("a plan", Arena.model_validate(plan)) is not None
    assert memory.chart("a plan", Arena.model_validate(plan | change)) is None
