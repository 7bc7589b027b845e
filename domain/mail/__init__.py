"""Mail: who is told of what, the outbox that keeps it, and the messages that people read."""
