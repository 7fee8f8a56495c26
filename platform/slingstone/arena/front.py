"""A replica of the door: what a request needs, asked of those who draw and judge. Loads no torch, so it starts fast."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from reward_services.cluster_access import refuse_open_cluster
from slingstone.arena.door import door
from slingstone.arena.errors import Unavailable
from slingstone.arena.gallery import Drawn, Gallery, Identity
from slingstone.arena.pairs import Asked
from slingstone.arena.preparation import directory, votes_uri
from slingstone.arena.store import Store
from slingstone.arena.tokens import PairTokens, arena_secret
from slingstone.config import Arena
from slingstone.prompts.files import read_prompts

PAUSE_S = 0.1


class Front:
    """A replica of the door; what it must not lose is in the store.

    Args:
        arena: prepared.
        identities: of the generators, by name.
        generators: handles of their deployments, by name.
        judge: handle of the judge; None where no reward is configured.
    """

    def __init__(
        self,
        arena: Arena,
        identities: Mapping[str, Identity],
        generators: Mapping[str, DeploymentHandle],
        judge: DeploymentHandle | None,
    ) -> None:
        refuse_open_cluster(arena.drawers.open_cluster)
        self._generators, self._judge = generators, judge
        self._deadline_s = arena.drawers.deadline_s
        kept = directory(arena)
        self._gallery = Gallery(
            arena,
            read_prompts(arena.prompts, arena.column),
            identities,
            Store(votes_uri(arena), kept / "pictures"),
            PairTokens(arena_secret(kept)),
            self._draw,
            self._score,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return what answers; Serve asks for it when the replica starts."""
        return door(self._gallery)

    def check_health(self) -> None:
        """Reach the votes, or have Serve replace the replica."""
        self._gallery.store.count()

    async def _draw(self, asked: Asked) -> Drawn:
        return await self._answer(self._generators[asked.model], "draw", asked)

    async def _score(self, png: bytes, prompt: str) -> Mapping[str, float]:
        return {} if self._judge is None else await self._answer(self._judge, "score", png, prompt)

    async def _answer(self, handle: DeploymentHandle, method: str, *arguments: Any) -> Any:
        """Return a replica's answer; it is asked again when it dies, since an answer depends on the arguments alone."""
        end = time.monotonic() + self._deadline_s
        while True:
            try:
                return await getattr(handle, method).remote(*arguments)
            except BackPressureError as error:
                raise Unavailable("too many requests wait; come again in a moment") from error
            except RayTaskError:
                raise
            except (RayActorError, RayServeException, DeploymentUnavailableError, RayError) as error:
                if time.monotonic() > end:
                    raise Unavailable("no generator answers; come again in a minute") from error
                await asyncio.sleep(PAUSE_S)
