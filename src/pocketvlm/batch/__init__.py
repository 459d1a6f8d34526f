"""Files of requests → files of results."""
