"""Past one machine, on Ray: many engines answer a run of `batch`, `read` or `extract`, or serve. Extra `ray`."""
