"""What several tests share: servers, databases, and a small site."""
