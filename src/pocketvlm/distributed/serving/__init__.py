"""`pocketvlm serve` on Ray Serve: an address → replicas of the server, each conversation to the same one."""

from pocketvlm.errors import need

need("ray", "ray", "ray")
need("ray.serve", "ray", "ray")
