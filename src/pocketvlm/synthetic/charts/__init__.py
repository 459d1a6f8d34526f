"""Charts and questions about them."""
