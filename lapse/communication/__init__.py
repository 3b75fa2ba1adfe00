"""Floor 3. How ranks reach each other: packets over MPI, doorbells, mail, waiting, and the failure of a server."""
