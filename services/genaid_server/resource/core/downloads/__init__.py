"""Downloads: what is asked for, the job that fetches it, and what survives a restart."""
