"""A model that slows down with each request that runs, in virtual time, behind the real admission."""

import random
from dataclasses import dataclass, field

from stagemesh.services.router.admission.priority import Priority
from stagemesh.services.router.admission.queue import Admission, Ending, Ticket

from stagemesh.errors import ResourceExhausted

STEP_S = 0.01


@dataclass
class Client:
    """One request: `left` tokens to go; `at` is where its fraction of a token stands."""

    ticket: Ticket
    left: int
    at: float = 0.0


@dataclass
class Model:
    """A token of each session takes `alone_s` + `each_s` x sessions; `room` sessions fit into its memory."""

    alone_s: float
    each_s: float
    room: int = 10**9

    def peak(self, tokens, at_once=10_000):
        """Requests a second at most."""
        return 1 / ((self.alone_s / at_once + self.each_s) * tokens)


@dataclass
class Result:
    """Seconds since the start at which requests of each kind of outcome came to it."""

    answered: list = field(default_factory=list)
    late: list = field(default_factory=list)
    refused: list = field(default_factory=list)
    full: list = field(default_factory=list)
    waits: list = field(default_factory=list)
    # How long those waited that were refused in the end.
    in_vain: list = field(default_factory=list)
    most_active: int = 0
    most_waiting: int = 0
    # Priorities of the answered ones.
    classes: list = field(default_factory=list)

    def goodput(self, begin, end):
        """Requests answered in time, a second."""
        return sum(begin <= at < end for at in self.answered) / (end - begin)


def offer(
    model,
    load,
    seconds,
    *,
    tokens=lambda rng: 32,
    allowed=0,
    deadline_s=5.0,
    priority=lambda rng: Priority.NORMAL,
    max_active=256,
    max_waiting=1024,
    seed=0,
    stalls=(),
    speed=lambda rng: 1.0,
):
    """Offer `load(at)` requests a second (Poisson) for `seconds`.

    `allowed` is what they say that they have at most, instead of their `tokens`. `stalls` are (begin, end) in which
    nothing gets on; `speed` says every second how fast it is, 1 being what the model says.
    """
    rng, now, result = random.Random(seed), 1000.0, Result()
    admission = Admission(max_active=max_active, max_waiting=max_waiting)
    running, waiting, begun = {}, {}, now

    def start(moves):
        for ticket in moves.started:
            result.waits.append(now - ticket.arrived)
            running[ticket] = waiting.pop(ticket)
            if len(running) > model.room:
                del running[ticket]
                result.full.append(now - begun)
                start(admission.leave(ticket, now, Ending.FULL))
        for ticket, _ in moves.refused:
            del waiting[ticket]
            result.refused.append(now - begun)
            result.in_vain.append(now - ticket.arrived)

    changes, pace = now, 1.0
    while now < begun + seconds:
        now += STEP_S
        at = now - begun
        for _ in range(poisson(rng, load(at) * STEP_S)):
            size = tokens(rng)
            ticket = Ticket("m", priority(rng), now, now + deadline_s, size=float(allowed or size))
            waiting[ticket] = Client(ticket, size)
            try:
                start(admission.arrive(ticket))
            except ResourceExhausted:
                del waiting[ticket]
                result.refused.append(at)
        for ticket in [each for each in waiting if each.deadline <= now]:
            admission.abandon(ticket)
            del waiting[ticket]
            result.late.append(at)
        if not any(begin <= at < end for begin, end in stalls):
            if now >= changes:
                changes, pace = now + 1.0, speed(rng)
            rate = pace * STEP_S / (model.alone_s + model.each_s * max(len(running), 1))
            for ticket, client in list(running.items()):
                client.at += rate
                made = min(int(client.at), client.left)
                if made:
                    client.at -= made
                    client.left -= made
                    start(admission.progress(ticket, made, now))
        for ticket, client in list(running.items()):
            if not client.left or ticket.deadline <= now:
                del running[ticket]
                if client.left:
                    result.late.append(at)
                else:
                    result.answered.append(at)
                    result.classes.append(ticket.priority)
                start(admission.leave(ticket, now, Ending.CUT if client.left else Ending.WELL))
        assert admission.active == len(running)
        assert admission.waiting == len(waiting)
        result.most_active = max(result.most_active, admission.active)
        result.most_waiting = max(result.most_waiting, admission.waiting)
    return result


def poisson(rng, mean):
    """A Poisson number, by counting exponential gaps."""
    count, at = 0, rng.expovariate(1.0)
    while at < mean:
        count += 1
        at += rng.expovariate(1.0)
    return count
