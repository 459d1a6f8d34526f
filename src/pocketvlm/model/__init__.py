"""Arrays → arrays: the model in PyTorch, its caches, and its checkpoints, which are also read without PyTorch."""
