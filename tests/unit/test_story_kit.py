"""The story kit finds what it is for: answers that depend on history."""

from __future__ import annotations

import pytest

from felix_like.calc.snapshot import Change, Touched
from tests.support.stories import ORDERS, TELLINGS, CalcWorld, Scene, block_on, node, play, pool, scene

A, B, POOL = node("a", "192.0.2.1"), node("b", "192.0.2.2"), pool("pods", "10.1.0.0/16")
STORY = (
    scene(A, B, POOL, peers={"192.0.2.2": "Mesh_192_0_2_2 64512 (b) passive"}),
    scene(A, POOL, block_on("a"), originated={"10.1.0.0/26"}, blackholes={"10.1.0.0/26"}),
    scene(A, POOL, block_on("b")),
)


class NeverForgets(CalcWorld):
    def tell(self, changes: list[Change]) -> None:
        super().tell([change for change in changes if change.value is not None])


class SleepsThroughBlocks(CalcWorld):
    """Believes that no batch concerns it."""

    def tell(self, changes: list[Change]) -> None:
        before = self.desired(self.snapshot)
        self.snapshot.apply(changes)
        assert self.desired(self.snapshot) == before


class Recorder:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def enter(self, scene: Scene) -> None:
        self.heard.append(("enter", len(scene.state)))

    def tell(self, changes: list[Change]) -> None:
        self.heard.append([(change.key, change.value is not None) for change in changes])

    def check(self, scene: Scene) -> None:
        self.heard.append(("check", len(scene.state)))


@pytest.mark.parametrize("world", [NeverForgets, SleepsThroughBlocks])
def test_a_world_with_a_fault_is_found_out(world):
    with pytest.raises(AssertionError):
        play(TELLINGS["as told"](STORY), ORDERS["keys in order"], world("a"))


def test_a_wrong_expectation_is_found_out_in_every_telling():
    wrong = (*STORY[:-1], scene(A, POOL, block_on("b"), blackholes={"10.1.0.0/26"}))
    for telling in TELLINGS.values():
        if telling(wrong)[-1].scenes[-1] is wrong[-1]:
            with pytest.raises(AssertionError):
                play(telling(wrong), ORDERS["keys in order"], CalcWorld("a"))


def test_how_a_story_is_told():
    one, two = scene(("/a", A)), scene(("/a", A), ("/b", B))
    said = {}
    for name in ("as told", "backwards", "squashed", "from nothing each"):
        recorder = Recorder()
        play(TELLINGS[name]((one, two)), ORDERS["keys reversed"], recorder)
        said[name] = recorder.heard
    a, b, no_a, no_b = ("/a", True), ("/b", True), ("/a", False), ("/b", False)
    assert said == {
        "as told": [("enter", 1), [a], ("check", 1), ("enter", 2), [b], ("check", 2)],
        "backwards": [("enter", 2), [b, a], ("check", 2), ("enter", 1), [no_b], ("check", 1)],
        "squashed": [("enter", 2), [a, b], ("check", 2)],
        "from nothing each": [
            ("enter", 0), [], ("enter", 1), [a], ("check", 1),
            ("enter", 0), [no_a], ("enter", 2), [b, a], ("check", 2),
        ],
    }  # fmt: skip


def test_the_orders_say_the_same():
    batch = [Change("/a", A, 1), Change("/b", B, 2)]
    first, second = batch
    assert {name: order(batch) for name, order in ORDERS.items()} == {
        "keys in order": [[first, second]],
        "keys reversed": [[second, first]],
        "doubled": [[first, first, second, second]],
        "batch repeated": [[first, second], [first, second]],
        "one by one": [[first], [second]],
        "one by one, reversed": [[second], [first]],
    }
    assert not Touched()
