"""Collections: what is asked of the API server about them."""
