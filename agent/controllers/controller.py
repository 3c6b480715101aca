"""What a controller is, and how the leader runs several: each on its own, all in one term."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import Protocol

from agent.controllers.election import Leadership
from felix_like.datastore.errors import EtcdError, GuardFailed

log = logging.getLogger("tortie.controllers")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between a failure of a controller and its next start."""
CALM = 60.0
"""Seconds of work after which earlier failures are forgotten."""


class Controller(Protocol):
    """Something that is done once for the whole cluster, by the leader alone.

    `run` starts from nothing: whatever an earlier term (here or in another process) left half done is found
    in etcd and finished. It writes with `leadership.client` only.
    """

    @property
    def name(self) -> str: ...

    async def run(self, leadership: Leadership) -> None:
        """For ever, while leading; cancelled when the leadership is lost.

        EtcdError (and what else `main` names as an outage) starts it anew, after a pause; GuardFailed ends
        the term; anything else is a bug and ends the process.
        """


def _nobody(_name: str, _problem: str | None) -> None:
    pass


async def keep_running(
    controller: Controller,
    leadership: Leadership,
    *,
    outages: tuple[type[Exception], ...] = (EtcdError,),
    tell: Callable[[str, str | None], None] = _nobody,
    rng: random.Random | None = None,
) -> None:
    """Run a controller for ever: after an outage again, with backoff. One never ends its siblings.

    `tell` hears the controller's name and what is wrong with it, None when it is started again.
    """
    rng = rng or random.Random()
    clock = asyncio.get_running_loop().time
    failures = 0
    while True:
        started = clock()
        try:
            await controller.run(leadership)
            raise RuntimeError(f"the controller {controller.name} ended by itself")
        except Exception as error:
            outage = _outage(error, outages)
            failures = 1 if clock() - started > CALM else failures + 1
            log.warning("%s: %s", controller.name, outage)
            tell(controller.name, str(outage))
        await asyncio.sleep(rng.uniform(0.5, 1.5) * min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures, 10)))
        tell(controller.name, None)


def _outage(error: Exception, outages: tuple[type[Exception], ...]) -> BaseException:
    """The first of the outages that ended a controller, whatever groups it comes in; raises anything else."""
    found: BaseException | None = error
    if isinstance(error, ExceptionGroup):
        found, rest = error.split((*outages, GuardFailed))
        if rest is not None:
            raise rest
        late = error.subgroup(GuardFailed)
        found = late if late is not None else found
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    if found is None or isinstance(found, GuardFailed) or not isinstance(found, outages):
        raise found or error
    return found


async def run_all(
    controllers: Iterable[Controller],
    leadership: Leadership,
    *,
    outages: tuple[type[Exception], ...] = (EtcdError,),
    tell: Callable[[str, str | None], None] = _nobody,
) -> None:
    """One term: all controllers at once. Raises a group when one finds the term to be over, or has a bug."""
    async with asyncio.TaskGroup() as group:
        for controller in controllers:
            group.create_task(
                keep_running(controller, leadership, outages=outages, tell=tell), name=controller.name
            )
