"""What people and machines see of the scaling: status, explanation, metrics."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from knhk.domain.times import rfc3339
from knhk.scaling.autoscaler import Autoscaler
from knhk.scaling.decision import Judged
from knhk.scaling.forecast import Mean
from knhk.scaling.ledger import Entry

_SHOWN: Final = 10
_OFF: Final = "platform.enable_auto_scaling is off: the number of replicas does not change by itself"
_ELSEWHERE: Final = "another node leads: it decides"
_SOON: Final = "the first look at the load is yet to come"
_RULE: Final = (
    "Each signal asks for ceil(replicas x value / target); within 10 % of the target nothing changes, and replicas are "
    "taken away only if those that stay are 10 % below it. The signal that asks for most counts; one that is not known "
    "takes none away."
)


def status(scaler: Autoscaler) -> dict[str, Any]:
    """What there is, what is wanted and why, and the last decisions; times are RFC 3339."""
    policy, look, entry = scaler.policy, scaler.last, scaler.ledger.open
    decision = None if look is None else look.decision
    return {
        "enabled": scaler.settings.enabled,
        "driver": scaler.scaler.name,
        "leads": scaler.crew.leads(),
        "replicas": {
            "current": None if decision is None else decision.current,
            "wanted": None if decision is None else entry.decided.after if entry else decision.wanted,
            "reporting": None if look is None else len(look.fleet.loads),
            "min": policy.min_replicas,
            "max": policy.max_replicas,
        },
        "looked_at": None if look is None else rfc3339(look.at_ns),
        "reason": decision.reason if decision is not None else _why_not(scaler),
        "held_by": "" if decision is None else decision.held,
        "increase_from": _free_from(scaler, policy.up_cooldown_ns, up=True),
        "decrease_from": _free_from(scaler, policy.down_cooldown_ns, up=False),
        "carrying_out": None if entry is None else {**_entry(entry), "waits_for": scaler.waits_for},
        "trouble": "" if scaler.health() == "ok" else scaler.health(),
        "decisions": [_entry(one) for one in reversed(scaler.ledger.entries[-_SHOWN:])],
    }


def explain(scaler: Autoscaler) -> dict[str, Any]:
    """The status, and everything that it comes from: signals, loads of replicas, what is expected."""
    look = scaler.last
    return {
        **status(scaler),
        "rule": _RULE,
        "signals": [] if look is None else [_signal(one) for one in look.decision.signals],
        "unknown": [] if look is None else list(look.unknown),
        "loads": [] if look is None else [msgspec.to_builtins(one) for one in look.fleet.loads],
        "schedules": [
            {
                "definition": one.definition,
                "fires_in_10m": one.coming,
                "fired_in_10m": one.before,
                "mean_s": round(scaler.meter.means.get(one.definition, Mean()).seconds, 3),
            }
            for one in scaler.firings
        ],
        "hours_known": len(scaler.history.hours),
    }


def families(scaler: Autoscaler) -> Iterator[Metric]:
    """For the metrics. What only the leader knows is left out on the others."""
    yield GaugeMetricFamily("knhk_scaling_enabled", "1 if it decides here.", scaler.decides)
    policy, look = scaler.policy, scaler.last
    replicas = GaugeMetricFamily("knhk_scaling_replicas", "Replicas: limits, current and wanted.", labels=("which",))
    replicas.add_metric(("min",), policy.min_replicas)
    replicas.add_metric(("max",), policy.max_replicas)
    ratio = GaugeMetricFamily("knhk_scaling_signal_ratio", "A signal's value by its target.", labels=("signal",))
    if look is not None:
        open_ = scaler.ledger.open
        replicas.add_metric(("current",), look.decision.current)
        replicas.add_metric(("wanted",), open_.decided.after if open_ else look.decision.wanted)
        replicas.add_metric(("reporting",), len(look.fleet.loads))
        for one in look.decision.signals:
            if one.desired is not None and one.signal.value is not None:
                ratio.add_metric((one.signal.name,), one.signal.value / one.signal.target)
    decisions = CounterMetricFamily(
        "knhk_scaling_decisions", "Decisions that were carried out or not.", labels=("direction", "outcome")
    )
    for labels, count in scaler.counts.items():
        decisions.add_metric(labels, count)
    yield from (replicas, ratio, decisions)


def _why_not(scaler: Autoscaler) -> str:
    if not scaler.settings.enabled:
        return _OFF
    return _SOON if scaler.crew.leads() else _ELSEWHERE


def _free_from(scaler: Autoscaler, cooldown_ns: int, *, up: bool) -> str | None:
    counted = [
        one.at_ns for one in scaler.ledger.history if one.after > one.before or (not up and one.after < one.before)
    ]
    return rfc3339(max(counted) + cooldown_ns) if counted else None


def _entry(entry: Entry) -> dict[str, Any]:
    decided = entry.decided
    return {
        "at": rfc3339(entry.at_ns),
        "before": decided.before,
        "after": decided.after,
        "driver": decided.driver,
        "outcome": entry.outcome or "under way",
        "ended_at": rfc3339(entry.ended_at_ns) if entry.ended_at_ns else None,
        "reason": decided.reason,
        "problem": entry.problem,
        "drains": list(decided.drains),
        "record": entry.record,
    }


def _signal(judged: Judged) -> dict[str, Any]:
    signal = judged.signal
    known = judged.desired is not None and signal.value is not None
    return {
        "signal": signal.name,
        "value": round(signal.value, 4) if known and signal.value is not None else None,
        "target": signal.target,
        "asks_for": judged.desired,
        "why": signal.why,
    }
