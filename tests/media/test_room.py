from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from service.media.room import Room


def test_pixels_beyond_the_room_wait_for_their_turn() -> None:
    room, entered, leave = Room(), threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        with room.hold(60, 100):
            entered.set()
            leave.wait(20)
            order.append("first")

    def later(name: str, pixels: int) -> None:
        with room.hold(pixels, 100):
            order.append(name)

    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(first)]
        assert entered.wait(20)
        with room.hold(40, 100):
            ends.append(pool.submit(later, "large", 41))
        while not room._turn.locked():
            pass
        # It would fit, but not before the one that waits.
        ends.append(pool.submit(later, "small", 1))
        time.sleep(0.1)
        leave.set()
        for end in ends:
            end.result(20)
    assert order[0] == "first"
    assert len(order) == 3


def test_one_that_is_larger_than_the_room_is_held_alone() -> None:
    room = Room()
    with room.hold(200, 100):
        assert room._held == 200
    with room.hold(1, 100):
        assert room._held == 1
