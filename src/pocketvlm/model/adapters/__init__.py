"""Adapters as PEFT writes them: a folder → checked low-rank updates → a merged model, or some rows of a batch."""
