"""Measuring speed: pocketvlm's runtimes, its peers and the machine's own ceilings, taking turns in one run."""
