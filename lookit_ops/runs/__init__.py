"""The work of one claimed request in one process, and what is done for a process that died."""
