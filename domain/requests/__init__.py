"""Requests for builds and archives: from the queue to their end, and what is told of them."""
