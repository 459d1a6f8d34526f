"""How many replicas there should be: by the requests that their engines have, and those that wait for one.

Ray Serve sends this module to its controller by value: it names nothing that lives outside it.
"""

from __future__ import annotations

from typing import Any

REQUESTS = "requests"  # of `record_autoscaling_stats` of a replica


def replicas_for_requests(context: Any) -> tuple[float, dict[str, Any]]:
    """Serve's policy hook: as many as bring the requests of each to the target; Serve applies delays and bounds.

    Args:
        context: `ray.serve.config.AutoscalingContext`. Requests of a replica are those in preparation, waiting and
            running there, by our own metrics; those that no replica has taken yet are counted by Serve.
    """
    counted = (context.aggregated_metrics or {}).get(REQUESTS, {})
    if context.current_num_replicas and not counted:  # no replica has reported yet
        return context.target_num_replicas, {}
    requests = sum(counted.values()) + context.total_queued_requests
    return requests / context.config.target_ongoing_requests, {}
