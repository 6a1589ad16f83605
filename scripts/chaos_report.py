"""The matrix actor x fault of scripts/chaos.py: for people, as JSON lines, and the verdict."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from scripts.chaos_clients import Outcome
from scripts.chaos_faults import Round

CALM = ("-", "-")
"""Row of the requests that no fault touched."""
COUNTS = ("accepted", "finished", "identical", "different", "left", "broken", "lost", "refused")


def tally(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Accepted requests end in one way each: finished (identical or different), left, broken or lost. A request that
    broke is asked again, which is accepted anew."""
    counts = dict.fromkeys(COUNTS, 0)
    for outcome in outcomes:
        counts[outcome.end] += 1
        counts["broken"] += outcome.broken
        counts["refused"] += outcome.refused
    counts["finished"] = counts["identical"] + counts["different"]
    counts["accepted"] = counts["finished"] + counts["left"] + counts["broken"] + counts["lost"]
    return counts


class Report:
    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self.rounds: list[Round] = []
        self.calm: list[Outcome] = []
        self.problems: list[str] = []
        """What is wrong beside lost and different answers: leaks, faults without effect."""

    def add(self, outcome: Outcome) -> None:
        """File a request under the last fault that it lived through."""
        for round in reversed(self.rounds[-8:]):
            if round.saw(outcome):
                round.outcomes.append(outcome)
                break
        else:
            self.calm.append(outcome)
        if outcome.end in ("lost", "different"):
            where = f"{round.actor} {round.fault}" if outcome not in self.calm[-1:] else "no fault"
            self._line(event=outcome.end, kind=outcome.kind, where=where, note=outcome.note)
            print(f"{outcome.end.upper()} ({where}, {outcome.kind}): {outcome.note}", flush=True)

    def problem(self, text: str) -> None:
        self.problems.append(text)
        self._line(event="problem", text=text)
        print(f"PROBLEM {text}", flush=True)

    @property
    def outcomes(self) -> list[Outcome]:
        return [*self.calm, *(outcome for round in self.rounds for outcome in round.outcomes)]

    @property
    def good(self) -> bool:
        total = tally(self.outcomes)
        return not (self.problems or total["lost"] or total["different"])

    def rows(self) -> Iterator[dict[str, Any]]:
        cells: dict[tuple[str, str], list[Round]] = {}
        for round in self.rounds:
            cells.setdefault((round.actor, round.fault), []).append(round)
        for (actor, fault), rounds in sorted(cells.items()):
            seconds = [round.seconds for round in rounds]
            yield {
                "actor": actor,
                "fault": fault,
                "injected": len(rounds),
                "effective": sum(bool(round.replaced) for round in rounds),
                **tally(outcome for round in rounds for outcome in round.outcomes),
                "recovery_median": round_to(statistics.median(seconds)),
                "recovery_max": round_to(max(seconds)),
                "pause_max": round_to(max((o.pause for r in rounds for o in r.outcomes), default=0.0)),
            }
        yield {"actor": CALM[0], "fault": CALM[1], "injected": 0, "effective": 0, **tally(self.calm)}

    def total(self) -> dict[str, Any]:
        injected, effective = len(self.rounds), sum(bool(round.replaced) for round in self.rounds)
        return {"injected": injected, "effective": effective, **tally(self.outcomes)}

    def show(self) -> None:
        """Print the matrix; the rows go to the JSON lines as well."""
        heads = ("injected", "effective", *COUNTS)
        print(f"{'actor':<12} {'fault':<10} " + " ".join(f"{head:>9}" for head in heads) + "  recovery median    max")
        for row in self.rows():
            self._line(event="row", **row)
            line = f"{row['actor']:<12} {row['fault']:<10} " + " ".join(f"{row[head]:>9}" for head in heads)
            if "recovery_max" in row:
                line += f"  {row['recovery_median']:>13.2f} s {row['recovery_max']:>6.2f}"
            print(line)
        total = self.total()
        print(f"{'all':<12} {'':<10} " + " ".join(f"{total[head]:>9}" for head in heads))
        self._line(event="total", **total, problems=self.problems, good=self.good)
        print("nothing lost, nothing different, nothing left behind" if self.good else "FAILED", flush=True)

    def over(self, round: Round) -> None:
        """A round has ended."""
        if round.trouble:
            self.problem(f"{round.actor} {round.fault}: {round.trouble}")
        self._line(
            event="fault",
            actor=round.actor,
            fault=round.fault,
            seconds=round_to(round.seconds),
            replaced=round.replaced,
            trouble=round.trouble,
        )

    def _line(self, **values: Any) -> None:
        if self._stream is not None:
            print(json.dumps(values), file=self._stream, flush=True)


def round_to(seconds: float) -> float:
    return float(f"{seconds:.3f}")
