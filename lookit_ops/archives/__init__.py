"""Archives of videos: what goes in, how they are made, and the catalogue of videos."""
