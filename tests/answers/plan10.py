"""Right and wrong answers to exercise 10.3, machines, workers and connections."""

from __future__ import annotations

import math

from answers.register import Register

from support import theory

answers = Register()
RIGHT, WRONG, STUBS = answers.RIGHT, answers.WRONG, answers.STUBS
right, wrong, stub = answers.right, answers.wrong, answers.stub

SHAPE = "returns three whole numbers above 0"
CORES = "no more workers than cores"
BUDGET = "the connections fit, those for the administrator left free"
STEADY = "with one machine gone, every worker keeps up"
LOAD = "with one machine gone, the others carry the load"
WAIT = "with one machine gone, p99 of the wait for a connection holds"
FEWEST = "no machine more than it takes"
FINDS = "finds a plan where there is one"
REFUSES = "raises ValueError where there is none"


@stub("10.3")
def plan_stub(service):
    raise NotImplementedError


@stub("10.3")
def plan_pass(service): ...


def search(service, *, spare=1, reserve=True, usl=True, per_worker=True, quantile=True, queries=True, most_workers=None,
           rest=True, erlang=True, orders=None):  # fmt: skip
    """A search with switches: each wrong answer turns one of them."""
    free = service.max_connections - (service.reserve if reserve else 0)
    for machines in range(1 + spare, free + 1):
        for workers in orders or range(1, (most_workers or service.cores) + 1):
            alone = theory.usl_throughput(workers, service.gain, service.contention, service.coherence)
            if (machines - spare) * (alone if usl else workers * service.gain) < service.rate:
                continue
            each = (
                service.rate
                * (service.queries if queries else 1)
                / ((machines - spare if rest else machines) * workers)
            )
            for connections in range(1, free // (machines * (workers if per_worker else 1)) + 1):
                if each * service.query_s >= connections:
                    continue
                if not erlang:
                    return machines, workers, connections
                if quantile:
                    wait = theory.erlang_c_wait_quantile(0.99, each, service.query_s, connections)
                else:
                    wait = theory.erlang_c_mean_wait(each, service.query_s, connections)
                if wait <= service.wait_s:
                    return machines, workers, connections
    raise ValueError("no plan keeps all the rules")


@right("10.3")
def plan(service):
    return search(service)


@right("10.3")
def plan_from_many_workers(service):
    return search(service, orders=range(service.cores, 0, -1))


@right("10.3")
def plan_with_the_most_connections(service):
    """It gives each worker all that the budget has."""
    machines, workers, _ = search(service)
    return machines, workers, (service.max_connections - service.reserve) // (machines * workers)


@right("10.3")
def plan_as_a_list(service):
    return list(search(service))


@wrong("10.3", LOAD)
def plan_without_a_spare_machine(service):
    return search(service, spare=0)


@wrong("10.3", BUDGET)
def plan_without_the_reserve(service):
    return search(service, reserve=False)


@wrong("10.3", LOAD)
def plan_that_grows_in_a_line(service):
    return search(service, usl=False)


@wrong("10.3", BUDGET)
def plan_that_counts_a_pool_a_machine(service):
    return search(service, per_worker=False)


@wrong("10.3", WAIT)
def plan_by_the_mean_wait(service):
    return search(service, quantile=False)


@wrong("10.3", WAIT)
def plan_by_the_load_alone(service):
    return search(service, erlang=False)


@wrong("10.3", STEADY)
def plan_that_counts_requests_for_queries(service):
    return search(service, queries=False)


@wrong("10.3", WAIT)
def plan_for_all_machines_alive(service):
    """It carries the load without one machine, but its pools were made for all of them."""
    return search(service, rest=False)


@wrong("10.3", FINDS)
def plan_with_every_core(service):
    """Past the peak of the USL more workers carry less."""
    return search(service, orders=[service.cores])


@wrong("10.3", FEWEST)
def plan_with_one_worker(service):
    return search(service, orders=[1])


@wrong("10.3", FEWEST)
def plan_with_one_machine_too_many(service):
    machines, *rest = search(service)
    return machines + 1, *rest


@wrong("10.3", CORES)
def plan_with_more_workers_than_cores(service):
    return search(service, orders=range(2 * service.cores, 0, -1))


@wrong("10.3", REFUSES)
def plan_that_returns_none(service):
    try:
        return search(service)
    except ValueError:
        return None


@wrong("10.3", REFUSES)
def plan_that_raises_another_error(service):
    try:
        return search(service)
    except ValueError:
        raise RuntimeError("there is none") from None


@wrong("10.3", FINDS)
def plan_that_gives_up_early(service):
    """It looks at the first number of workers that carries the load, and at no other."""
    for machines in range(2, service.max_connections):
        for workers in range(1, service.cores + 1):
            alone = theory.usl_throughput(workers, service.gain, service.contention, service.coherence)
            if (machines - 1) * alone >= service.rate:
                return search(service, orders=[workers]) if machines * workers < 12 else search(service, orders=[99])
    raise ValueError


@wrong("10.3", SHAPE)
def plan_with_fractions(service):
    machines, workers, connections = search(service)
    return machines, workers, float(connections)


@wrong("10.3", SHAPE)
def plan_of_a_total(service):
    machines, workers, connections = search(service)
    return machines, machines * workers * connections


@wrong("10.3", "runs without an error")
def plan_that_divides_by_nothing(service):
    return search(service) if service.contention else (1, math.ceil(service.rate / service.contention), 1)


@wrong("10.3", WAIT)
def plan_of_one_shared_pool(service):
    """It sizes one pool for all workers, and then cuts it into pieces."""
    machines, workers, _ = search(service)
    rate = service.rate * service.queries
    total = next(n for n in range(math.ceil(rate * service.query_s) + 1, 999)
                 if theory.erlang_c_wait_quantile(0.99, rate, service.query_s, n) <= service.wait_s)  # fmt: skip
    return machines, workers, math.ceil(total / (machines * workers))
