"""The checker of exercise 10.3: how many machines, workers and connections a service needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .. import theory
from ..queueing import simulated_wait
from .engine import Exercise, three_hints
from .harness import NO_ERROR, Failed, Prove, call, plain, tell

SHAPE = "returns three whole numbers above 0"
CORES = "no more workers than cores"
BUDGET = "the connections fit, those for the administrator left free"
STEADY = "with one machine gone, every worker keeps up"
LOAD = "with one machine gone, the others carry the load"
WAIT = "with one machine gone, p99 of the wait for a connection holds"
FEWEST = "no machine more than it takes"
FINDS = "finds a plan where there is one"
REFUSES = "raises ValueError where there is none"


class Service(NamedTuple):
    """What a plan is made for. Times in seconds, rates per second."""

    rate: float  # requests per second, of all machines together
    gain: float  # requests per second of one worker alone
    contention: float  # the USL's alpha, for the workers of one machine
    coherence: float  # the USL's beta
    cores: int  # of one machine: at most so many workers
    queries: float  # of one request, one after the other
    query_s: float  # mean seconds of one query
    wait_s: float  # 99 % of the queries wait at most so long for a connection
    max_connections: int  # of the database
    reserve: int  # of these, for its administrator


# Chosen so that each usual mistake is wrong for at least one: see tests/answers/plan10.py.
SERVICES = (
    Service(900, 200, 0.05, 0.01, 8, 1, 0.004, 0.004, 100, 3),
    Service(600, 200, 0.03, 0.004, 8, 6, 0.002, 0.020, 60, 3),
    Service(900, 200, 0.05, 0.01, 8, 3, 0.004, 0.004, 100, 3),
    Service(300, 150, 0.02, 0.001, 4, 1, 0.010, 0.010, 20, 3),
    Service(600, 200, 0.03, 0.004, 4, 1, 0.008, 0.005, 24, 3),
    Service(1200, 150, 0.08, 0.02, 16, 1, 0.005, 0.005, 100, 10),
    Service(60, 100, 0.0, 0.0, 4, 1, 0.020, 0.010, 30, 3),
    Service(700, 250, 0.03, 0.002, 8, 2, 0.003, 0.003, 40, 5),
)
IMPOSSIBLE = (
    Service(2500, 100, 0.03, 0.002, 8, 1, 0.010, 0.002, 60, 3),  # too few connections
    Service(900, 200, 0.05, 0.01, 8, 2, 0.020, 0.001, 50, 3),  # more queries than they can answer
)


def carried(service: Service, machines: int, workers: int) -> float:
    """Requests per second of so many machines with so many workers each, by the USL."""
    return machines * theory.usl_throughput(workers, service.gain, service.contention, service.coherence)


def waits(service: Service, machines: int, workers: int, connections: int) -> float:
    """p99 of the wait for one of a worker's connections, by Erlang C; infinite where they cannot keep up."""
    rate = service.rate * service.queries / (machines * workers)
    if rate * service.query_s >= connections:
        return float("inf")
    return theory.erlang_c_wait_quantile(0.99, rate, service.query_s, connections)


def plans(service: Service, machines: int) -> Iterator[tuple[int, int, int]]:
    """Every plan with so many machines that keeps all the rules."""
    for workers in range(1, service.cores + 1):
        if carried(service, machines - 1, workers) >= service.rate:
            most = (service.max_connections - service.reserve) // (machines * workers)
            for connections in range(1, most + 1):
                if waits(service, machines - 1, workers, connections) <= service.wait_s:
                    yield machines, workers, connections
                    break


def fewest(service: Service) -> tuple[int, int, int] | None:
    """A plan with the fewest machines, or None where there is none."""
    for machines in range(2, service.max_connections + 1):
        for plan in plans(service, machines):
            return plan
    return None


def check_plan(answer: Callable[..., Any], prove: Prove) -> None:
    """The formulas decide, and a simulated pool confirms what they say of the waits."""
    for service in SERVICES:
        run = call(answer, service)
        told = f"For {_told(service)}"
        if run.error is not None:
            if isinstance(run.error, ValueError) and any(call(answer, one).error is None for one in SERVICES):
                prove(FINDS, False, f"{told}, it raised {tell(run.error)}, and {_plan(fewest(service))} would do.")
            raise Failed(NO_ERROR, f"{told}, it raised {tell(run.error)}.")
        plan = run.value
        whole = isinstance(plan, tuple | list) and len(plan) == 3 and all(type(n) is int and n > 0 for n in plan)
        prove(SHAPE, whole, f"{told}, it returned {plain(repr(plan))}: machines, workers and connections are wanted.")
        _judge(service, *plan, prove, f"{told}, {_plan(plan)}")
    for service in IMPOSSIBLE:
        run = call(answer, service)
        told = f"For {_told(service)}, no plan keeps all the rules"
        prove(REFUSES, run.error is not None, f"{told}, and it returned {plain(repr(run.value))}.")
        prove(REFUSES, isinstance(run.error, ValueError), f"{told}: ValueError is wanted, not {tell(run.error)}.")


def _judge(service: Service, machines: int, workers: int, connections: int, prove: Prove, told: str) -> None:
    prove(CORES, workers <= service.cores, f"{told}: a machine has {service.cores} cores.")
    taken, most = machines * workers * connections, service.max_connections - service.reserve
    prove(BUDGET, taken <= most, f"{told}: that makes {taken} connections, and {most} are to be had.")
    rest = machines - 1
    carries = carried(service, rest, workers) if rest else 0.0
    prove(LOAD, carries >= service.rate, f"{told}: without one machine they carry {carries:.0f} requests a second.")
    p99 = waits(service, rest, workers, connections)
    prove(STEADY, p99 < float("inf"), f"{told}: without one machine, a worker's queries come faster than they go.")
    seen = simulated_wait(0.99, service.rate * service.queries / (rest * workers), service.query_s, connections)
    prove(WAIT, p99 <= service.wait_s, f"{told}: without one machine, p99 of the wait is {1000 * p99:.1f} ms by Erlang C, "
          f"{1000 * seen:.1f} ms in a simulated pool; {1000 * service.wait_s:g} ms were wanted.")  # fmt: skip
    best = fewest(service)
    prove(FEWEST, best is not None and machines <= best[0], f"{told}: {_plan(best)} would do.")


def _plan(plan: Any) -> str:
    machines, workers, connections = plan
    one = {True: "", False: "s"}
    return f"{machines} machines of {workers} worker{one[workers == 1]} with {connections} connection{one[connections == 1]} each"


def _told(service: Service) -> str:
    several = "" if service.queries == 1 else f", {service.queries:g} queries each"
    return f"{service.rate:g} requests a second{several}"


EXERCISES = [
    Exercise(
        "10.3",
        "choose machines, workers and connections",
        "plan(service)",
        ("service",),
        three_hints("""
        Which of the three rules grows with the number of workers, and which shrinks? Which numbers change when
        one machine is gone, and which does the database still count?

        Try machines from 2 up, and for each every number of workers up to the cores. The others must carry the
        whole rate by the USL. Then give each worker the fewest connections whose p99 wait holds, at the rate that
        is left for one worker; Erlang C needs that rate times the time of a query below the connections.

        for machines in range(2, most + 1): for workers in range(1, service.cores + 1): if (machines - 1) *
        theory.usl_throughput(workers, ...) >= service.rate: look for connections with machines * workers *
        connections <= most. Nothing found: raise ValueError.
        """),
        check_plan,
    )
]
