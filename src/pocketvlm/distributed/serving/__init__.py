"""`pocketvlm serve` on Ray Serve: an address → replicas of the server, each conversation to the same one."""

import os

from pocketvlm.errors import need

# Ray reads both as it is imported, which `need` does. It shortens what replicas log where lines look alike, as ours do,
# and it colours them, also in files.
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")
need("ray", "ray", "ray")
need("ray.serve", "ray", "ray")
