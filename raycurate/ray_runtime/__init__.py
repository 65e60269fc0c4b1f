"""What knows Ray: reaching or starting it, its capacity, jobs."""
