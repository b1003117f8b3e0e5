"""The report of a sweep: as Markdown for its page, as one HTML file, and for programs."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from typing import Any
from uuid import UUID
from xml.etree import ElementTree

import pytest

from prefect_launch.sweeps.config import parse_sweep
from prefect_launch.sweeps.history import Trial, TrialState
from prefect_launch.sweeps.report import SweepReport
from prefect_launch.sweeps.trial_log import describe_trial
from tests.support.sweeping import finished, trials_of

EVIL = '</script><script>alert(1)</script>|`<img src=x onerror="a">\n# [x](javascript:a)'


def link(item_id: UUID) -> str:
    return f"/runs/flow-run/{item_id}"


def report_of(*trials: Trial, name: str = "mine", message: str = "", **config: Any) -> SweepReport:
    given = {"method": "random", "metric": {"name": "loss"}, "parameters": {"x": {"min": 0.0, "max": 1.0}}, **config}
    return SweepReport(name, UUID(int=5), "running", message, parse_sweep(given), trials_of(*trials))


def failed(number: int, cause: str) -> Trial:
    return Trial(number, {"x": 0.5}, TrialState.FAILED, cause=cause)


def images(markdown: str) -> list[ElementTree.Element]:
    found = re.findall(r"!\[[^\]]*\]\(data:image/svg\+xml;base64,([^)]+)\)", markdown)
    return [ElementTree.fromstring(base64.b64decode(image)) for image in found]


class Tags(HTMLParser):
    """Collects the tags of a page, and the texts that people read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


# --- Markdown ---


def test_markdown_tells_state_best_trial_charts_trials_and_failures_with_links() -> None:
    report = report_of(
        *(finished(k, 1.0 / (k + 1), x=k / 10) for k in range(12)),
        *(failed(k, "exit code 3") for k in range(12, 20)),
        failed(20, "no memory"),
        run_cap=30,
    )
    text = report.markdown(link)
    best, twelfth = (report.trials.items[number].item.id for number in (11, 12))
    assert f"### Best: [trial 11](/runs/flow-run/{best}), `loss` 0.083333" in text
    assert "| `x` | `1.1` |" in text
    assert "21 of at most 30: 12 finished, 9 failed" in text
    assert len(images(text)) == 3
    assert f"| 8 | `exit code 3` | [12](/runs/flow-run/{twelfth}), [13](" in text
    assert "| 1 | `no memory` |" in text
    assert text.index("exit code 3") < text.index("no memory"), "the commonest cause first"
    assert "`prefect-launch sweep show`: 11 more." in text


def test_markdown_of_a_sweep_without_trials_or_without_a_metric_is_whole() -> None:
    assert len(images(report_of().markdown(link))) == 3
    plain = report_of(finished(0, None), metric=None).markdown(link)
    assert images(plain) == []
    assert "### Best" not in plain
    assert "| [0](" in plain


def test_markdown_of_thousands_of_trials_and_parameters_is_bounded() -> None:
    names = [f"p{k}" for k in range(60)]
    report = report_of(
        *(finished(k, float(k), **dict.fromkeys(names, "v" * 200)) for k in range(2_000)),
        *(failed(k, f"cause {k} " * 100) for k in range(2_000, 2_200)),
        parameters={name: {"values": ["v" * 200, "w"]} for name in names},
    )
    text = report.markdown(link)
    assert len(text) < 200_000
    assert "190 more causes." in text


def test_what_people_wrote_is_neither_markdown_nor_html_nor_a_link_in_the_report() -> None:
    report = report_of(
        finished(0, 1.0, x=EVIL), failed(1, EVIL), name=EVIL, message=EVIL, parameters={"x": {"values": [EVIL, "b"]}}
    )
    for row in report.markdown(link).splitlines():
        outside = re.sub(r"`[^`]*`", "", row)
        assert "<" not in outside, row
        assert "javascript" not in outside, row
    page = Tags(report.html(link))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in page.tags]
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert any(text == EVIL for text in page.texts), "it is shown as it is"


# --- HTML ---


def test_html_is_one_file_with_the_charts_and_every_trial_and_needs_nothing_else() -> None:
    report = report_of(*(finished(k, 1.0 / (k + 1), x=k / 10) for k in range(12)), failed(12, "exit code 3"))
    html = report.html(lambda item_id: f"http://ui.example.com/runs/flow-run/{item_id}")
    page = Tags(html)
    kinds = [tag for tag, _ in page.tags]
    assert kinds.count("svg") == 3
    assert not {"link", "img", "iframe", "object"} & set(kinds)
    assert all("src" not in attributes for _, attributes in page.tags)
    addresses = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {f"http://ui.example.com/runs/flow-run/{one.item.id}" for one in report.trials.items.values()} == addresses
    (policy,) = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert {"Sweep mine", "exit code 3", "minimize loss"} <= set(page.texts)


@pytest.mark.parametrize("count", [0, 1, 5_000])
def test_html_of_any_number_of_trials_is_whole_and_bounded(count: int) -> None:
    html = report_of(*(finished(k, float(k)) for k in range(count))).html(link)
    assert html.endswith("</html>\n")
    assert len(html) < 1_000_000
    assert ("3,000 more trials" in html) == (count == 5_000)


# --- for programs ---


def test_fields_of_a_report_are_json_with_values_that_are_not_finite_as_text() -> None:
    report = report_of(finished(0, math.nan), finished(1, 0.5), failed(2, "exit code 3"))
    fields = json.loads(json.dumps(report.fields()), parse_constant=pytest.fail)
    assert fields["counts"] == {"finished": 2, "failed": 1}
    assert fields["best"] == 1
    assert fields["failures"] == [{"cause": "exit code 3", "trials": [2]}]
    assert [trial["metric"] for trial in fields["trials"]] == [0.5, "NaN", None]
    assert fields["importance"]["values"] == 1


def test_line_of_a_trial_shows_a_value_that_is_no_number() -> None:
    config = report_of().config
    assert describe_trial(finished(0, float("nan")), config).startswith("trial 0 finished, loss NaN: ")
