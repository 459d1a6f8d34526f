"""Which replica a request goes to: the one that its conversation belongs to, else the least loaded.

Ray Serve sends this module to whoever routes, by value: it names nothing that lives outside it but Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

SLACK = 8  # requests that a replica may have more than the least loaded one before its conversations go elsewhere


def ranked(key: str, names: Sequence[str]) -> list[str]:
    """Names in the order in which a key prefers them (rendezvous hashing): when one goes, only its keys move."""
    return sorted(names, key=lambda name: blake2b(f"{key}\0{name}".encode(), digest_size=8).digest())


class ConversationRouter(RequestRouter):
    """Ranks of replicas for a request by the key in its `session_id`.

    The kept prefix of a conversation is worth a short wait, not a long one: a replica that has `slack` requests more
    than the least loaded one is passed over, as is one that is full or gone. A request that is tried again, because the
    replica that it was sent to has ended, goes to the next in its order.
    """

    # A replica whose interpreter is busy with a large picture answers later than Serve's default of 0.1 s, and would
    # lose its conversations for it; one that has died is known at once.
    queue_len_response_deadline_s = 2.0
    max_queue_len_response_deadline_s = 10.0
    slack = SLACK

    def initialize_state(self, **kwargs: Any) -> None:
        """Take `slack`, of `request_router_kwargs`."""
        self.slack = int(kwargs.get("slack", SLACK))

    def length_of(self, replica: RunningReplica) -> int:
        """Requests that it has, as far as is known here."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks, best first; within one, Serve takes the least loaded that has room."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        key = pending_request.metadata.session_id if pending_request is not None else ""
        if not key or len(candidate_replicas) < 2:
            return [list(candidate_replicas)]
        attempt = int(pending_request.kwargs.get("attempt", 0)) if pending_request is not None else 0
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        order = ranked(key, list(by_name))
        favourite = by_name[order[attempt % len(order)]]
        others = [one for one in candidate_replicas if one is not favourite]
        if self.length_of(favourite) > min(map(self.length_of, others)) + self.slack:
            return [others, [favourite]]
        return [[favourite], others]
