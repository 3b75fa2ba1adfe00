"""Floor 2. What a rank does on each request and message: relocation and replication, without MPI, threads or clock."""
