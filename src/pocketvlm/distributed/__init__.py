"""Past one machine, on Ray: files in → files out by many engines, and a server in front of many."""
