from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.shm.lanes import Pair, child, payloads

Records = list[tuple[int, int, bytes]]


def run(main: Callable[[asyncio.AbstractEventLoop], object]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(asyncio.get_running_loop()), 20)  # type: ignore[arg-type]

    asyncio.run(bounded())


def test_what_was_there_and_what_comes_is_delivered_in_budgets(pair: Pair):
    sender, inbox = pair.ends()
    batches: list[Records] = []

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        assert sender.put_many([b"%d" % n for n in range(25)]) == 25
        inbox.attach(loop, batches.append, budget=10)
        while sum(map(len, batches)) < 25:
            await asyncio.sleep(0)
        assert [len(batch) for batch in batches] == [10, 10, 5]
        await asyncio.sleep(0.01)
        assert pair.consumer_bell.parked
        sender.try_put(b"later")
        while batches[-1] == [] or batches[-1][0][2] != b"later":
            await asyncio.sleep(0.001)
        inbox.detach(loop)
        inbox.detach(loop)

    run(main)
    assert payloads([record for batch in batches[:3] for record in batch]) == [b"%d" % n for n in range(25)]


def test_other_callbacks_get_their_turn_between_budgets(pair: Pair):
    sender, inbox = pair.ends()
    order: list[str] = []

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        sender.put_many([b"x"] * 30)
        inbox.attach(loop, lambda records: order.append(f"records {len(records)}"), budget=10)
        for _ in range(8):
            order.append("other")
            await asyncio.sleep(0)
        inbox.detach(loop)

    run(main)
    assert order.count("records 10") == 3
    first, last = order.index("records 10"), len(order) - 1 - order[::-1].index("records 10")
    assert order[first:last].count("other") >= 2


def test_callback_hears_that_space_is_back(pair: Pair):
    sender = pair.sender()
    own = pair.producer_inbox()
    heard: list[Records] = []
    while sender.try_put(bytes(1016)):
        pass

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        own.attach(loop, heard.append)
        await asyncio.sleep(0.02)
        assert heard == []
        inbox = pair.inbox()
        inbox.drain()
        while not heard:
            await asyncio.sleep(0.001)
        assert heard == [[]]
        assert sender.try_put(bytes(1016))
        own.detach(loop)

    run(main)


def test_records_of_another_process_all_arrive(pair: Pair):
    amount = 20_000

    def produce() -> None:
        sender, own = pair.sender(), pair.producer_inbox()
        for number in range(amount):
            while not sender.try_put(number.to_bytes(4, "little") * 25):
                assert own.wait(10)
            if number % 5000 == 0:
                time.sleep(0.02)  # the consumer goes to sleep

    got: list[int] = []

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        inbox, done = pair.inbox(), asyncio.Event()

        def take(records: Records) -> None:
            got.extend(int.from_bytes(payload[:4], "little") for payload in payloads(records))
            if len(got) == amount:
                done.set()

        inbox.attach(loop, take)
        with pytest.raises(RuntimeError, match="already attached"):
            inbox.attach(loop, take)
        await done.wait()
        inbox.detach(loop)

    with child(produce) as process:
        run(main)
        assert process.join() == 0
    assert got == list(range(amount))


def test_an_error_in_the_callback_does_not_stop_the_inbox(pair: Pair):
    sender, inbox = pair.ends()
    errors: list[object] = []
    seen: list[bytes] = []

    def take(records: Records) -> None:
        seen.extend(payloads(records))
        if b"bad" in payloads(records):
            raise ZeroDivisionError

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
        inbox.attach(loop, take)
        for text in (b"bad", b"good"):
            sender.try_put(text)
            while text not in seen:
                await asyncio.sleep(0.001)
        inbox.detach(loop)

    run(main)
    assert [type(error) for error in errors] == [ZeroDivisionError]


def test_detach_inside_the_callback(pair: Pair):
    sender, inbox = pair.ends()
    seen: list[Records] = []

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        def take(records: Records) -> None:
            seen.append(records)
            inbox.detach(loop)

        inbox.attach(loop, take, budget=1)
        sender.put_many([b"1", b"2"])
        await asyncio.sleep(0.02)

    run(main)
    assert [payloads(records) for records in seen] == [[b"1"]]
    assert payloads(inbox.drain()) == [b"2"]
