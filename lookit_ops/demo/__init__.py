"""What the demonstration needs beside the platform itself."""
