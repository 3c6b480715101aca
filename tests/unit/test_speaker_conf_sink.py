"""exabgp.conf as a sink: rendered, published, told to the speaker, and told again when that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.keep import Report
from agent.latest import Latest
from agent.sinks.speaker_conf import RETRY, SpeakerConfSink
from bird_config.publish import Publisher
from bird_config.validator import Unchecked
from felix_like.model.address import Asn
from felix_like.model.bgp import Peer, PeerType
from felix_like.model.desired import Desired
from felix_like.model.verdict import No, Verdict, Yes
from tests.support.rib_world import ip
from tests.support.unprivileged import unprivileged

OK = Report()
AGAIN = Report(retry_after=RETRY)


def peer(address: str, **more: object) -> Peer:
    named: dict[str, object] = {
        "address": ip(address),
        "asn": Asn(64512),
        "local_address": ip("192.0.2.1"),
        "local_asn": Asn(64512),
        "router_id": "192.0.2.1",
        "type": PeerType.MESH,
        "name": f"Mesh_{address.replace('.', '_')}",
        "families": (4,),
        **more,
    }
    return Peer(**named)  # type: ignore[arg-type]


def desired(*addresses: str, **more: object) -> Desired:
    return Desired(node="a", asn=Asn(64512), peers={ip(a): peer(a, **more) for a in addresses})


class World:
    """A checker and a speaker that answer as told; what they were shown."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "run" / "exabgp.conf"
        self.checks: list[Verdict | Exception] = []
        self.answers: list[str | None] = []
        self.checked = 0
        self.reloads: list[str] = []
        self.desired: Latest[Desired] = Latest()
        self.sink = SpeakerConfSink(self.desired, Publisher(self.path, self._check), self._reload)

    async def _check(self, path: Path) -> Verdict:
        self.checked += 1
        answer = self.checks.pop(0) if self.checks else Yes()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _reload(self, path: Path) -> str | None:
        assert path == self.path
        self.reloads.append(path.read_text())
        return self.answers.pop(0) if self.answers else None

    async def apply(self, wanted: Desired | None = None) -> Report:
        if wanted is not None:
            self.desired.put(wanted)
        return await self.sink.apply()

    def refused(self) -> list[str]:
        return [str(refusal) for refusal in self.sink.refusals]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    await made.sink.start()
    return made


async def test_before_anything_is_known_nothing_is_written(world: World) -> None:
    assert await world.apply() == OK
    assert list(world.path.parent.iterdir()) == []
    assert world.reloads == []


async def test_peers_become_a_file_that_the_speaker_reads_once(world: World) -> None:
    assert await world.apply(desired("192.0.2.2")) == OK
    assert await world.apply(desired("192.0.2.2")) == OK
    assert await world.apply() == OK
    assert (len(world.reloads), world.checked) == (1, 1)
    assert "neighbor 192.0.2.2" in world.reloads[0]
    assert await world.apply(desired("192.0.2.2", "192.0.2.3")) == OK
    assert len(world.reloads) == 2
    assert "neighbor 192.0.2.3" in world.reloads[1]
    assert world.refused() == []


async def test_it_is_settled_when_the_speaker_was_told_of_the_newest_peers(world: World) -> None:
    assert not world.sink.settled, "we may have died before the last word"
    await world.apply(desired("192.0.2.2"))
    assert world.sink.settled
    world.desired.put(desired("192.0.2.3"))
    assert not world.sink.settled
    world.answers = ["busy", None]
    await world.apply()
    assert not world.sink.settled
    await world.apply()
    assert world.sink.settled
    world.sink.tell_again()
    assert not world.sink.settled


async def test_after_a_restart_of_ours_the_speaker_reads_an_unchanged_file_once_more(tmp_path: Path) -> None:
    """We may have died between file and word."""
    first = World(tmp_path)
    await first.sink.start()
    await first.apply(desired("192.0.2.2"))
    second = World(tmp_path)
    await second.sink.start()
    await second.apply(desired("192.0.2.2"))
    await second.apply()
    assert (second.reloads, second.checked) == (first.reloads, 0)


async def test_a_file_that_the_check_refuses_is_not_put_in_place_and_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.apply(desired("192.0.2.2"))
    good = world.path.read_text()
    world.checks = [No("ExaBGP's validator refuses it: line 7")]
    assert await world.apply(desired("192.0.2.3")) == AGAIN
    assert await world.apply() == AGAIN
    assert world.path.read_text() == good
    assert len(world.reloads) == 1
    [said] = world.refused()
    assert said.startswith(f"{world.path}: ExaBGP's validator refuses it: line 7")
    assert len(caplog.records) == 1
    assert await world.apply(desired("192.0.2.2")) == OK
    assert world.refused() == []


async def test_what_could_not_be_checked_is_tried_again(world: World) -> None:
    world.checks = [Unchecked("ExaBGP's validator does not run")]
    assert await world.apply(desired("192.0.2.2")) == AGAIN
    assert not world.path.exists()
    assert await world.apply() == OK
    assert len(world.reloads) == 1


async def test_what_the_speaker_does_not_take_it_is_told_again_though_the_file_is_the_same(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.answers = ["port 179 is in use", "port 179 is in use"]
    assert await world.apply(desired("192.0.2.2")) == AGAIN
    assert await world.apply() == AGAIN
    assert world.refused() == [f"{world.path}: the speaker did not take it: port 179 is in use"]
    assert len(caplog.records) == 1
    assert await world.apply() == OK
    assert (len(world.reloads), world.refused()) == (3, [])


async def test_a_changed_file_that_is_not_taken_is_told_again(world: World) -> None:
    await world.apply(desired("192.0.2.2"))
    world.answers = ["port 179 is in use"]
    assert await world.apply(desired("192.0.2.2", "192.0.2.3")) == AGAIN
    assert await world.apply() == OK
    assert len(world.reloads) == 3


async def test_a_refusal_that_comes_late_wakes_the_sink_and_the_file_is_told_again(world: World) -> None:
    await world.apply(desired("192.0.2.2"))
    world.sink.wake.clear()
    world.sink.tell_again()
    assert world.sink.wake.is_set()
    world.answers = ["port 179 is in use"]
    assert await world.apply() == AGAIN
    assert world.refused() != []


async def test_a_speaker_that_fails_while_told_is_told_again(world: World) -> None:
    class Broken(World):
        async def _reload(self, path: Path) -> str | None:
            self.reloads.append("")
            raise OSError(32, "Broken pipe")

    broken = Broken(world.path.parent)
    await broken.sink.start()
    for _ in range(2):
        with pytest.raises(OSError, match="Broken pipe"):
            await broken.apply(desired("192.0.2.2"))
    assert len(broken.reloads) == 2


async def test_a_peer_that_cannot_be_written_is_refused_by_name_and_the_others_go_on(world: World) -> None:
    assert (
        await world.apply(
            Desired(
                node="a",
                asn=Asn(64512),
                peers={
                    ip("192.0.2.2"): peer("192.0.2.2"),
                    ip("192.0.2.3"): peer("192.0.2.3", password="x" * 81),
                },
            )
        )
        == OK
    )
    assert "neighbor 192.0.2.2" in world.reloads[0]
    assert "neighbor 192.0.2.3" not in world.reloads[0]
    [said] = world.refused()
    assert "192.0.2.3" in said or "Mesh_192_0_2_3" in said
    assert "xxx" not in said
    await world.apply(desired("192.0.2.2"))
    assert world.refused() == []


async def test_a_password_is_in_the_file_only_and_nobody_else_reads_that(world: World) -> None:
    await world.apply(desired("192.0.2.2", password="geheim"))
    assert world.path.stat().st_mode & 0o777 == 0o600
    assert "geheim" not in repr(world.desired.peek())


async def test_a_directory_that_cannot_be_written_is_said(world: World) -> None:
    world.path.parent.chmod(0o500)
    with unprivileged():
        assert await world.apply(desired("192.0.2.2")) == AGAIN
    assert "cannot be written" in world.refused()[0]


async def test_the_directory_comes_back_when_someone_removed_it(world: World) -> None:
    world.path.parent.rmdir()
    assert await world.apply(desired("192.0.2.2")) == AGAIN
    await world.sink.start()  # as `keep` does after a while
    assert await world.apply() == OK
    assert len(world.reloads) == 1
