"""The crew of a cluster: its members by etcd, their loads by asking each one's API."""

import asyncio
import re
from collections.abc import Sequence

from knhk.cluster.member import Member
from knhk.scaling.asking import Asking
from knhk.scaling.crew import OwnLoad
from knhk.scaling.load import Fleet, Load


class Members:
    """Implements Crew. `statefulset` names the pods, `<statefulset>-<ordinal>`; empty: nobody is drained here."""

    def __init__(self, member: Member, own: OwnLoad, asking: Asking, statefulset: str = "") -> None:
        self._member, self._own, self._asking, self._statefulset = member, own, asking, statefulset

    def leads(self) -> bool:
        return self._member.leads

    async def loads(self) -> Fleet:
        nodes = self._member.view.nodes
        others = [one for name, one in nodes.items() if name != self._member.node.node_id and not one.leaving]
        own, answers = await asyncio.gather(self._own(), asyncio.gather(*(self._asking.ask(one.api) for one in others)))
        silent = {one.node_id: answer for one, answer in zip(others, answers, strict=True) if isinstance(answer, str)}
        return Fleet((own, *(answer for answer in answers if isinstance(answer, Load))), silent)

    def doubts(self) -> Sequence[str]:
        if not self._statefulset:
            return ()
        named = re.compile(rf"{re.escape(self._statefulset)}-\d+")
        strangers = sorted(name for name in self._member.view.nodes if not named.fullmatch(name))
        if not strangers:
            return ()
        return (
            f"{', '.join(strangers[:3])} has not the name of its pod (platform.node_id), so who would go is not known",
        )

    def departing(self, before: int, after: int) -> Sequence[str]:
        """Those of the highest ordinals: a StatefulSet deletes its pods in that order."""
        return [f"{self._statefulset}-{number}" for number in range(after, before)] if self._statefulset else []

    def members(self) -> frozenset[str]:
        return frozenset(self._member.view.nodes)

    def drained(self) -> frozenset[str]:
        return self._member.view.drained

    def owns(self, name: str) -> int:
        return sum(held.owner.node_id == name for held in self._member.view.owners.values())

    async def drain(self, name: str, *, drained: bool) -> None:
        await self._member.drain(name, drained=drained)
