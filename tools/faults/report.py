"""The results of tools.faults.chaos: the matrix actor x fault as a table and as JSON lines, and the verdict."""

from __future__ import annotations

import json
import statistics
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from tools.faults.clients import Outcome
from tools.faults.injector import Round

CALM = ("-", "-")
"""Row of the requests without a fault."""
SHOWN = 5
"""Lost and different answers that are printed at once; the JSON lines have all."""
COUNTS = ("accepted", "finished", "identical", "different", "left", "broken", "lost", "refused", "resumed")


def tally(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """An accepted request ends in one way: finished (identical or different), left or lost. One whose connection
    broke is resumed; `broken` are those that the dead front had not accepted and the client sent again."""
    counts = dict.fromkeys(COUNTS, 0)
    for outcome in outcomes:
        counts[outcome.end] += 1
        counts["broken"] += outcome.broken
        counts["refused"] += outcome.refused
        counts["resumed"] += outcome.resumed
    counts["finished"] = counts["identical"] + counts["different"]
    counts["accepted"] = counts["finished"] + counts["left"] + counts["lost"]
    return counts


class Report:
    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self.rounds: list[Round] = []
        self.outcomes: list[Outcome] = []
        self.problems: list[str] = []
        """Problems other than lost and different answers: leaks, faults without effect."""

    def add(self, outcome: Outcome) -> None:
        """Counts a request that has ended."""
        self.outcomes.append(outcome)
        if outcome.end in ("lost", "different"):
            lived = [f"{round.actor} {round.fault}" for round in self.rounds[-8:] if round.saw(outcome)]
            self._line(event=outcome.end, kind=outcome.kind, during=lived, note=outcome.note)
            count = sum(other.end == outcome.end for other in self.outcomes)
            if count <= SHOWN:
                print(f"{outcome.end.upper()} ({outcome.kind}, during {', '.join(lived)}): {outcome.note}", flush=True)

    def problem(self, text: str) -> None:
        self.problems.append(text)
        self._line(event="problem", text=text)
        print(f"PROBLEM {text}", flush=True)

    @property
    def good(self) -> bool:
        total = tally(self.outcomes)
        return not (self.problems or total["lost"] or total["different"])

    def file(self) -> list[Outcome]:
        """Assigns every request to a fault that it lived through: the one that killed http if its connection broke,
        else the last one. Returns the others."""
        calm = []
        starts = [round.injected for round in self.rounds]
        for round in self.rounds:
            round.outcomes.clear()
            round.hit = 0
        for outcome in self.outcomes:
            last = bisect_right(starts, outcome.ended)
            first = last
            while first and self.rounds[first - 1].saw(outcome):
                first -= 1
            lived = self.rounds[first:last]
            for round in lived:
                round.hit += outcome.started <= round.injected
            deaths = [round for round in lived if outcome.broken + outcome.resumed and "http" in round.replaced]
            if lived:
                (deaths or lived)[-1].outcomes.append(outcome)
            else:
                calm.append(outcome)
        return calm

    def rows(self) -> Iterator[dict[str, Any]]:
        calm = self.file()
        cells: dict[tuple[str, str], list[Round]] = {}
        for round in self.rounds:
            cells.setdefault((round.actor, round.fault), []).append(round)
        for (actor, fault), rounds in sorted(cells.items()):
            seconds = [round.seconds for round in rounds]
            pauses = [max((outcome.pause for outcome in round.outcomes), default=0.0) for round in rounds]
            yield {
                "actor": actor,
                "fault": fault,
                "injected": len(rounds),
                "effective": sum(bool(round.replaced) for round in rounds),
                "hit": sum(round.hit for round in rounds),
                **tally(outcome for round in rounds for outcome in round.outcomes),
                "recovery_median": round_to(statistics.median(seconds)),
                "recovery_max": round_to(max(seconds)),
                "pause_median": round_to(statistics.median(pauses)),
                "pause_max": round_to(max(pauses)),
            }
        yield {"actor": CALM[0], "fault": CALM[1], "injected": 0, "effective": 0, "hit": 0, **tally(calm)}

    def total(self) -> dict[str, Any]:
        injected, effective = len(self.rounds), sum(bool(round.replaced) for round in self.rounds)
        hit = sum(round.hit for round in self.rounds)
        return {"injected": injected, "effective": effective, "hit": hit, **tally(self.outcomes)}

    def show(self) -> None:
        """Prints the matrix; the JSON lines get its rows too."""
        heads = ("injected", "effective", "hit", *COUNTS)
        names = " ".join(f"{head:>9}" for head in heads)
        print(f"{'actor':<12} {'fault':<10} {names}  recovery, s: median, most  longest pause, s")
        for row in self.rows():
            self._line(event="row", **row)
            line = f"{row['actor']:<12} {row['fault']:<10} " + " ".join(f"{row[head]:>9}" for head in heads)
            if "recovery_max" in row:
                line += f"  {row['recovery_median']:>19.2f} {row['recovery_max']:>6.2f}"
                line += f"  {row['pause_median']:>9.2f} {row['pause_max']:>6.2f}"
            print(line)
        total = self.total()
        print(f"{'all':<12} {'':<10} " + " ".join(f"{total[head]:>9}" for head in heads))
        print(in_words(total))
        self._line(event="total", **total, problems=self.problems, good=self.good)
        print("nothing lost, nothing different, nothing left behind" if self.good else "FAILED", flush=True)

    def over(self, round: Round) -> None:
        """Counts a round that has ended."""
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


def in_words(total: dict[str, Any]) -> str:
    """All totals in one line."""
    return (
        "{injected} faults injected, {effective} effective; {accepted} requests accepted, {finished} finished, "
        "{identical} identical, {resumed} connections resumed, {broken} not accepted when http died (and sent again), "
        "{refused} refused (and tried again), {left} left by the client, {lost} lost, {different} different"
    ).format(**total)


def round_to(seconds: float) -> float:
    return float(f"{seconds:.3f}")
