"""Metrics, their page, the alert rules and the dashboard: all names exist."""

from __future__ import annotations

import json
import operator
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from keepfs.mount.metrics import METRICS, MetricKind
from tests import figure_documents

MONITORING = Path(__file__).parent.parent / "monitoring"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((MONITORING / "keepfs.rules.yml").read_text())["groups"]
    for rule in group["rules"]
}
CASES: list[dict[str, Any]] = yaml.safe_load((MONITORING / "keepfs.rules.test.yml").read_text())[
    "tests"
]
#: Names of samples, as Prometheus has them.
SAMPLES = {
    each.name + suffix
    for each in METRICS
    for suffix in (("_bucket", "_sum", "_count") if each.kind is MetricKind.HISTOGRAM else ("",))
}
#: Names that begin with keepfs_ in an expression.
NAMED = re.compile(r"\bkeepfs_\w+")
_COMPARISONS = {">": operator.gt, "<": operator.lt}


# --- a part of Prometheus: what the rules use of it ---------------------------------

Series = list[tuple[str, dict[str, str], list[float]]]


def values(text: str) -> list[float]:
    """Return the values, one for each minute, of promtool's notation: `0 1x3`, `0+2x5`."""
    found = []
    for word in text.split():
        first, sign, step, times = re.fullmatch(  # type: ignore[union-attr] # else the test fails
            r"([\d.]+)(?:([+-])([\d.]+))?(?:x(\d+))?", word
        ).groups()
        by = float(step or 0) * (-1 if sign == "-" else 1)
        found += [float(first) + by * each for each in range(int(times or 0) + 1)]
    return found


def parsed(given: list[dict[str, str]]) -> Series:
    found = []
    for each in given:
        name, _, labels = each["series"].rstrip("}").partition("{")
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found.append((name, pairs, values(each["values"])))
    return found


def selected(selector: str, series: Series) -> Series:
    """Return the series of a selector with the matchers = != =~."""
    name, _, matchers = selector.strip().rstrip("}").partition("{")
    conditions = re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers)

    def fits(labels: dict[str, str]) -> bool:
        for key, sign, text in conditions:
            value = labels.get(key, "")
            is_same = re.fullmatch(text, value) is not None if sign == "=~" else value == text
            if is_same == (sign == "!="):
                return False
        return True

    return [each for each in series if each[0] == name and fits(each[1])]


def vector(term: str, series: Series, minute: int) -> list[float]:
    """Return the values of a term at a time."""
    term = term.strip()
    if ranged := re.fullmatch(r"increase\((.*)\[(\d+)([mh])\]\)", term):
        width = int(ranged[2]) * (60 if ranged[3] == "h" else 1)
        return [
            each[minute] - each[max(0, minute - width)]
            for _, _, each in selected(ranged[1], series)
        ]
    if until := re.fullmatch(r"(.*) - time\(\)", term):
        return [value - 60 * minute for value in vector(until[1], series, minute)]
    if product := re.fullmatch(r"([\d.]+) \* (.*)", term):
        return [float(product[1]) * value for value in vector(product[2], series, minute)]
    if re.fullmatch(r"[\d.]+", term):
        return [float(term)]
    return [each[minute] for _, _, each in selected(term, series) if minute < len(each)]


def is_true(expression: str, series: Series, minute: int) -> bool:
    left, sign, right = re.fullmatch(  # type: ignore[union-attr] # else the test fails
        r"(.*) ([<>]) (.*)", expression
    ).groups()
    limits = vector(right, series, minute)
    return any(
        _COMPARISONS[sign](value, limit)
        for value in vector(left, series, minute)
        for limit in limits
    )


def minutes(text: str) -> int:
    return int(text[:-1]) * (60 if text.endswith("h") else 1)


# --- the tests ------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_each_alert_fires_and_is_quiet_as_its_series_say(case: dict[str, Any]) -> None:
    (told,) = case["promql_expr_test"]
    rule = RULES[case["name"].split()[0]]
    assert f'alertname="{rule["alert"]}"' in told["expr"]
    series, at = parsed(case["input_series"]), minutes(told["eval_time"])
    since = range(at - minutes(rule.get("for", "0m")), at + 1)

    fires = all(is_true(rule["expr"], series, minute) for minute in since)

    assert fires == bool(told["exp_samples"])


def test_every_alert_has_a_series_that_fires_and_one_that_does_not() -> None:
    expected = sorted(f"{alert} {what}" for alert in RULES for what in ("fires", "is quiet"))

    assert sorted(case["name"] for case in CASES) == expected
    assert all({"summary", "action"} == set(rule["annotations"]) for rule in RULES.values())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_agrees() -> None:
    for words in (
        ("check", "rules", "keepfs.rules.yml"),
        ("test", "rules", "keepfs.rules.test.yml"),
    ):
        done = subprocess.run(
            ["promtool", *words], cwd=MONITORING, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboard_name_only_metrics_that_there_are() -> None:
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = [rule["expr"] for rule in RULES.values()]

    assert len(shown) > 20
    assert {name for it in (*shown, *alerts) for name in NAMED.findall(it)} - SAMPLES == set()
    assert all(NAMED.search(it) for it in (*shown, *alerts))


def test_names_of_metrics_follow_the_conventions_of_prometheus() -> None:
    names = [each.name for each in METRICS]

    assert len(set(names)) == len(names)
    assert [it for it in names if not re.fullmatch(r"keepfs_[a-z_]+", it)] == []
    counters = [each.name for each in METRICS if each.kind is MetricKind.COUNTER]
    assert [it for it in counters if not it.endswith("_total")] == []


def test_the_pages_of_metrics_and_status_are_current() -> None:
    """If this fails: scripts/document-figures."""
    for name, made in (
        ("metrics.md", figure_documents.metrics_page),
        ("status.md", figure_documents.status_page),
    ):
        text = (figure_documents.DOCS / name).read_text()
        assert made(text) == text
