"""Will this plan ever be scheduled? Asked before the work starts, because Ray only waits.

Two actors of 0.75 CPU on a machine of two CPUs leave half a CPU, and a reader that wants a whole one waits
for ever without an error. So every operator of a plan states what it holds (`OperatorDemand`), and
`check_plan` places the smallest set that can make progress, all actor pools at their minimum size and one
task, on the nodes that live and on the nodes that an autoscaler may add. Only what provably fits on neither is
refused: the search for a placement is exact for plans of a few dozen workers, and for larger ones that the
simple placement cannot seat it says "not proven" and lets the plan go.

Everything here is plain arithmetic on numbers that `ray_runtime/cluster.py` reads from Ray; nothing imports Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raycurate.core.errors import CapacityError, ConfigError

UNLIMITED = -1
_UNIT = 10_000  # Ray counts resources in ten-thousandths
_EXACT_WORKERS = 40  # up to so many workers the search for a placement is complete ...
_EXACT_STEPS = 50_000  # ... or stops after so many steps
_GIB = 1024**3


class Resources(dict[str, float]):
    """Amounts by Ray's names of resources; what is not there is 0."""

    @property
    def cpu(self) -> float:
        return self.get("CPU", 0.0)

    @property
    def gpu(self) -> float:
        return self.get("GPU", 0.0)

    @property
    def memory(self) -> float:
        """In bytes."""
        return self.get("memory", 0.0)


@dataclass(frozen=True)
class NodeShape:
    """A live node (`count` 1), or a kind of node of which an autoscaler may run `count` (UNLIMITED: any number)."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    name: str = ""


@dataclass(frozen=True)
class Capacity:
    """What there is, and what there may be.

    Fields:
        nodes: the live nodes.
        groups: the kinds of nodes that the autoscaler knows, with how many it may run in all.
        maximum: largest total by resource that the autoscaler allows; None when nobody knows.
        autoscaler: whether nodes may still come.
        owned: whether this process started the cluster, which is then this machine.
    """

    nodes: tuple[NodeShape, ...]
    groups: tuple[NodeShape, ...] = ()
    maximum: Mapping[str, float] | None = None
    autoscaler: bool = False
    owned: bool = False

    @property
    def live(self) -> Resources:
        """Totals by resource of the nodes that are there now (CPU, GPU, memory in bytes, ...)."""
        return total(n.resources for n in self.nodes)

    @property
    def largest(self) -> Resources:
        """By resource, the larger of what is live and of what the autoscaler may reach."""
        live, maximum = self.live, self.maximum or {}
        return Resources({k: max(live.get(k, 0.0), float(maximum.get(k, 0.0))) for k in {**live, **maximum}})

    @property
    def largest_node(self) -> Resources:
        """The resources of the largest single node, live or allowed: GPUs first, then CPUs, then memory."""
        shapes = [*self.nodes, *self.groups]
        order = lambda s: tuple(s.resources.get(k, 0.0) for k in ("GPU", "CPU", "memory"))  # noqa: E731
        return Resources(max(shapes, key=order).resources) if shapes else Resources()

    @property
    def unknown_maximum(self) -> bool:
        """Nodes may come, and nobody knows how many."""
        return self.autoscaler and self.maximum is None

    @property
    def may_have_gpus(self) -> bool:
        """Whether a GPU is live, or may come."""
        return self.largest.gpu > 0 or any(g.resources.get("GPU", 0) > 0 for g in self.groups) or self.unknown_maximum

    def allowed_nodes(self, workers: int) -> list[NodeShape]:
        """The nodes of the largest allowed cluster, no more than `workers` of a kind beyond the live ones."""
        nodes = list(self.nodes)
        live = [n.labels.get("ray.io/node-group", "") for n in self.nodes]
        for group in self.groups:
            limit = workers if group.count == UNLIMITED else min(group.count - live.count(group.name), workers)
            nodes += [group] * max(0, limit)
        return nodes


@dataclass(frozen=True)
class OperatorDemand:
    """What one operator of a plan needs: `workers_min` actors held all along, or tasks that come and go.

    `num_cpus`, `num_gpus`, `memory` (bytes) and `resources` are of ONE worker.
    """

    name: str
    workers_min: int
    num_cpus: float
    num_gpus: float = 0.0
    memory: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["actors", "tasks"] = "actors"
    label_selector: Mapping[str, str] = field(default_factory=dict)

    def each(self) -> dict[str, float]:
        """What one worker takes, by Ray's names of resources, zeros left out."""
        all_of_it = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory, **self.resources}
        return {k: float(v) for k, v in all_of_it.items() if v}


@dataclass(frozen=True)
class PlanReport:
    """A plan that can run.

    Fields:
        needed: least resources that must be held at one moment.
        fits_now: whether the live nodes suffice.
        waits_for_nodes: a sentence for the user when the plan starts only after nodes are added, else None.
        table: the operators and the totals, as lines of text.
    """

    needed: dict[str, float]
    fits_now: bool
    waits_for_nodes: str | None
    table: str


def asked_gpus(capacity: Capacity, device: str, numbers: Mapping[str, Any], *, where: str) -> float | None:
    """GPUs of one worker as a stage's options ask for them; None where they leave it open.

    Args:
        device: auto, cpu or cuda.
        numbers: option -> what it says: a number, or None or "auto".

    Raises:
        ConfigError: two of the options cannot both be meant.
        CapacityError: GPUs are asked for, none is live and none can come.
    """
    said = {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}
    words = [*([f"device={device}"] if device != "auto" else []), *(f"{name}={gpus:g}" for name, gpus in said.items())]
    some = [device == "cuda"] * (device != "auto") + [gpus > 0 for gpus in said.values()]
    if len(set(some)) > 1 or len(set(said.values())) > 1:
        raise ConfigError(f"{' and '.join(words)} cannot both be meant", where=where, fix="Give one of them")
    if any(some) and not capacity.may_have_gpus:
        raise CapacityError(
            f"{' and '.join(words)}: no node of the cluster has a GPU, and none that has one can come",
            where=where,
            fix="Leave it out to run on CPUs, or connect to a cluster with GPUs (--address or RAY_ADDRESS)",
        )
    return next(iter(said.values()), None)


def check_plan(operators: list[OperatorDemand], capacity: Capacity) -> PlanReport:
    """Whether the smallest set of workers that makes progress has a place.

    Raises:
        CapacityError: it has none on the largest allowed cluster; the message holds the numbers.
    """
    pools = [o for o in operators if o.kind == "actors" and o.workers_min > 0]
    tasks = _distinct([o for o in operators if o.kind == "tasks"])
    held = [o for o in pools for _ in range(o.workers_min)]
    # Tasks come one kind after another: each must fit beside the actors, not beside the other tasks.
    sets = [[*held, task] for task in tasks] or [held]
    needed = _needed(held, tasks)
    table = _table(operators, needed, capacity)
    if all(placeable(s, capacity.nodes) is not False for s in sets):
        return PlanReport(needed, True, None, table)
    if capacity.unknown_maximum:
        sentence = "this plan waits for nodes that the autoscaler may add (what it may reach is unknown)"
        return PlanReport(needed, False, sentence, table)
    allowed = capacity.allowed_nodes(len(held) + 1)
    limits = capacity.largest
    misfits = [s for s in sets if placeable(s, allowed) is False or _over(total(o.each() for o in s), limits)]
    if misfits:
        raise CapacityError(
            f"{_reason(misfits[0], allowed, limits)}\n{table}\n",
            where="no allowed size of the cluster can run this plan",
            fix="Give the workers less (num_cpus, num_gpus, memory), use fewer of them (concurrency), "
            "or run on a larger cluster",
        )
    lacking = ", ".join(_amount(k, v - capacity.live.get(k, 0)) for k, v in _over(needed, capacity.live).items())
    return PlanReport(
        needed, False, f"this plan waits for the autoscaler to add nodes ({lacking or 'larger ones'})", table
    )


def total(parts: Iterable[Mapping[str, float]]) -> Resources:
    """The sum by resource."""
    result = Resources()
    for part in parts:
        for key, value in part.items():
            result[key] = result.get(key, 0.0) + float(value)
    return result


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether labels satisfy a Ray label selector: `v`, `!v`, `in(a,b)` or `!in(a,b)` for each key."""
    for key, wanted in selector.items():
        negated = wanted.startswith("!")
        inner = re.fullmatch(r"in\((.*)\)", wanted.removeprefix("!"))
        values = [v.strip() for v in inner.group(1).split(",")] if inner else [wanted.removeprefix("!")]
        if (labels.get(key) in values) == negated:
            return False
    return True


def placeable(workers: list[OperatorDemand], nodes: Iterable[NodeShape]) -> bool | None:
    """Whether every worker has a place on one node each; None when the search was cut off.

    First fit with the largest workers first; if that fails, all placements, for up to 40 workers.
    """
    free = [({k: round(v * _UNIT) for k, v in n.resources.items()}, n) for n in nodes]
    todo = sorted(workers, key=lambda w: tuple(w.each().get(k, 0.0) for k in ("GPU", "CPU", "memory")), reverse=True)
    needs = [({k: round(v * _UNIT) for k, v in w.each().items()}, w) for w in todo]
    if any(not any(_fits(need, room) for room in free) for need in needs):
        return False  # one worker must fit one node
    sums = total(need for need, _ in needs)
    rooms = total(room for room, _ in free)
    if any(value > rooms.get(key, 0) for key, value in sums.items()):
        return False
    if _first_fit(needs, free):
        return True
    return _search(needs, free) if len(needs) <= _EXACT_WORKERS else None


_Need = tuple[dict[str, int], OperatorDemand]
_Room = tuple[dict[str, int], NodeShape]


def _fits(need: _Need, room: _Room) -> bool:
    (amounts, worker), (left, node) = need, room
    # The labels of nodes that are not there yet are not known: they may match.
    labelled = not worker.label_selector or not node.labels or matches(node.labels, worker.label_selector)
    return labelled and all(left.get(k, 0) >= v for k, v in amounts.items())


def _take(need: Mapping[str, int], room: dict[str, int], sign: int) -> None:
    for key, value in need.items():
        room[key] = room.get(key, 0) - sign * value


def _first_fit(needs: list[_Need], free: list[_Room]) -> bool:
    rooms = [(dict(left), node) for left, node in free]
    seat, before = 0, None
    for need in needs:
        # Nodes that had no room for a worker have none for its twin: go on from where that one sat.
        first = seat if before is need[1] else 0
        before = need[1]
        found = next((i for i in range(first, len(rooms)) if _fits(need, rooms[i])), None)
        if found is None:
            return False
        seat = found
        _take(need[0], rooms[seat][0], 1)
    return True


def _search(needs: list[_Need], free: list[_Room]) -> bool | None:
    """Depth-first over all placements, equal nodes tried once; None when the steps run out."""
    rooms = [(dict(left), node) for left, node in free]
    steps = _EXACT_STEPS

    def seat(index: int) -> bool | None:
        nonlocal steps
        if index == len(needs):
            return True
        need = needs[index]
        tried: list[tuple[dict[str, int], Mapping[str, str]]] = []
        for left, node in rooms:
            if (left, node.labels) in tried or not _fits(need, (left, node)):
                continue
            steps -= 1
            if steps < 0:
                return None
            tried.append((dict(left), node.labels))
            _take(need[0], left, 1)
            found = seat(index + 1)
            _take(need[0], left, -1)
            if found is not False:
                return found
        return False

    return seat(0)


def _distinct(tasks: list[OperatorDemand]) -> list[OperatorDemand]:
    seen: dict[tuple[object, ...], OperatorDemand] = {}
    for task in tasks:
        seen.setdefault((*sorted(task.each().items()), *sorted(task.label_selector.items())), task)
    return list(seen.values())


def _needed(held: list[OperatorDemand], tasks: list[OperatorDemand]) -> dict[str, float]:
    """What must be held at once: all actors, and by resource the largest single task."""
    needed = total(o.each() for o in held)
    for key in {k for t in tasks for k in t.each()}:
        needed[key] = needed.get(key, 0.0) + max(t.each().get(key, 0.0) for t in tasks)
    return {k: round(v, 4) for k, v in needed.items()}


def _over(needed: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in needed.items() if v > limits.get(k, 0.0) + 0.5 / _UNIT}


def _reason(workers: list[OperatorDemand], nodes: list[NodeShape], limits: Mapping[str, float]) -> str:
    for worker in workers:
        if placeable([worker], nodes) is False:
            wants = ", ".join(_amount(k, v) for k, v in worker.each().items())
            labels = f" with labels {dict(worker.label_selector)}" if worker.label_selector else ""
            return f"one worker of {worker.name} needs {wants}{labels} on one node, and no node has that"
    over = _over(total(w.each() for w in workers), limits)
    if over:
        return "; ".join(
            f"{_amount(k, v)} must be held at once, {_amount(k, limits.get(k, 0.0))} can be had"
            for k, v in over.items()
        )
    return f"its {len(workers)} workers fit the total, but cannot be laid out on {len(nodes)} nodes"


def _amount(key: str, value: float) -> str:
    if "memory" in key:
        return f"{value / _GIB:.1f} GiB {key}"
    return f"{round(value, 4):g} {key}"


def _table(operators: list[OperatorDemand], needed: Mapping[str, float], capacity: Capacity) -> str:
    rows = [("operator", "kind", "least", "each takes")]
    for o in operators:
        each = ", ".join(_amount(k, v) for k, v in o.each().items()) or "nothing"
        rows.append((o.name, o.kind, str(o.workers_min if o.kind == "actors" else 1), each))
    keys = ["CPU", "GPU", *sorted(k for k in needed if k not in ("CPU", "GPU"))]
    show = lambda amounts: ", ".join(_amount(k, amounts.get(k, 0.0)) for k in keys)  # noqa: E731
    largest = "unknown (an autoscaler may add nodes)" if capacity.unknown_maximum else show(capacity.largest)
    rows += [
        ("needed at once", "", "", show(needed)),
        ("live", "", "", show(capacity.live)),
        ("largest allowed", "", "", largest),
        ("largest node", "", "", show(capacity.largest_node)),
    ]
    widths = [max(len(r[i]) for r in rows) for i in range(3)]
    return "\n".join("  " + "  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[3]]) for r in rows)
