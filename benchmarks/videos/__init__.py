"""The sides of the benchmark `videos.zip` and its simulated network, as programs of their own."""
