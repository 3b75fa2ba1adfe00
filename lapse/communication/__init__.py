"""Floor 3. How ranks reach each other: packets over MPI, mail, doorbells, and the failure that ends them all."""
