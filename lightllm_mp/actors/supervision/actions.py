"""What the state machine asks the supervisor to do. The actions of one event are executed in order."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from lightllm_mp.facts import Facts
from lightllm_mp.messages import Loading, Wire


class Action(Struct, frozen=True):
    """Base of all actions."""


class Send(Action, frozen=True):
    name: str
    message: Wire


class Spawn(Action, frozen=True):
    """Start these. `replace`: in the place of processes that are dead, with new control lanes."""

    names: tuple[str, ...]
    replace: bool = False


class Kill(Action, frozen=True):
    """`silent` > 0: it has not answered for so many seconds; log first where it hangs."""

    name: str
    silent: float = 0.0


class ResetData(Action, frozen=True):
    """Empty all data lanes."""

    epoch: int


class CompareRanks(Action, frozen=True):
    """The router has left its lanes: answer with `ranks_compared`."""


class After(Action, frozen=True):
    """Call `event(*args)` after `seconds`."""

    seconds: float
    event: Callable[..., list[Action]]
    args: tuple[object, ...]


class Progress(Action, frozen=True):
    """Show what a child that starts is doing."""

    name: str
    loading: Loading


class Serving(Action, frozen=True):
    """The start is complete."""

    facts: Facts


class Log(Action, frozen=True):
    level: int
    text: str


class Exit(Action, frozen=True):
    code: int
